# SPDX-License-Identifier: Apache-2.0
"""A hospital whose images lie as files, and the cohort that it built of them."""

from pathlib import Path

from client.cohorts.build import BuildOptions, build
from client.cohorts.ingest import PixelSettings
from client.cohorts.tables import Listed
from common.crypto.secrets import Secret
from tests.client.cohorts.exports import write_png, write_table
from tests.client.offered import Hospital, images


def hospital_with_cohort(folder: Path) -> Hospital:
    """The hospital of `offered`, with its images as PNG files and a table, and a cohort `built` of them beside the npz `chest`."""
    hospital, table = Hospital.make(folder), images()
    names = [f"{patient}/{row}.png" for row, patient in enumerate(table["patient_id"])]
    for name, pixels in zip(names, table["images"], strict=True):
        write_png(folder / "export" / name, pixels)
    rows = zip(table["patient_id"], names, table["labels"], strict=True)
    write_table(folder / "labels.csv", ("pid", "file", "label"), rows)
    listed = Listed("pid", "file", ("label",))
    options = BuildOptions(folder / "export", folder / "built", folder / "labels.csv", listed, pixels=PixelSettings(64))
    build(options, Secret.read(hospital.home.key))
    hospital.set(
        cohorts={
            "chest": {"data": "chest.npz", "nominal_patients": 50},
            "built": {"data": "built", "nominal_patients": 50},
        }
    )
    return hospital
