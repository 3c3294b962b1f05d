# SPDX-License-Identifier: Apache-2.0
"""Cohorts as `cohort build` leaves them, written by hand in a moment: images, patients, labels, and what is planted in them."""

import csv
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from client.cohorts.check import Order, check_cohort
from client.cohorts.findings import Finding
from client.cohorts.layout import files_path, sealed
from client.cohorts.records import FileRecord
from client.cohorts.verdict import Verdict
from client.pseudonyms import Pseudonyms
from common.crypto.secrets import Secret
from common.data.cohort_file import CohortFile, ImagesEntry
from common.study import Study
from tests.support.studies import PRIVATE, small

SECRET = Secret(b"h" * 32)
PSEUDONYMS = Pseudonyms(SECRET)


def scans(count: int, seed: int = 0, pixels: int = 64) -> np.ndarray:
    """Smooth images that share a shape (as those of one body part do) and differ in detail, uint8 [count, pixels, pixels]."""
    random = np.random.default_rng(seed)
    places = np.linspace(-1, 1, pixels)
    shape = 140 * np.exp(-2 * (places[:, None] ** 2 + places[None] ** 2))
    coarse = [Image.fromarray(random.random((9, 9), np.float32)) for _ in range(count)]
    detail = [np.asarray(one.resize((pixels, pixels), Image.Resampling.BICUBIC)) for one in coarse]
    return np.clip(shape + 110 * np.stack(detail), 0, 255).astype(np.uint8)


def write_cohort(
    folder: Path,
    images: np.ndarray,
    patients: Sequence[str],
    labels: Sequence[str],
    *,
    split: Sequence[str] | None = None,
    columns: Mapping[str, Sequence[str]] | None = None,
    records: Mapping[int, Mapping[str, Any]] | None = None,
    refused: Sequence[str] = (),
) -> Path:
    """A sealed cohort; `records` are facts of single images, `refused` the problems of files that did not enter."""
    folder.mkdir(mode=0o700)
    files_path(folder).parent.mkdir()
    np.save(folder / "images.npy", images)
    names = [PSEUDONYMS.of(patient) for patient in patients]
    cells = {"finding": labels, **({"split": split} if split else {}), **(columns or {})}
    with (folder / "manifest.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["patient", "image", *cells])
        lines.writerows([names[row], row, *(values[row] for values in cells.values())] for row in range(len(names)))
    facts = [_record(number, name, (records or {}).get(number, {})) for number, name in enumerate(names)]
    lost = [FileRecord(source=f"lost-{number}.png", sha256="", problem=problem) for number, problem in enumerate(refused)]
    files_path(folder).write_text("".join(one.line() for one in (*facts, *lost)), encoding="utf-8")
    seal(folder, images, len(set(names)), len(names), columns or {}, split is not None, len(refused))
    return folder


def seal(folder: Path, images: np.ndarray, patients: int, rows: int, columns: Mapping[str, Any], has_split: bool, refused: int) -> None:
    entry = ImagesEntry(
        size_pixels=images.shape[1],
        channels=3 if images.ndim == 4 else 1,
        bits=8 if images.dtype == np.uint8 else 16,
        count=len(images),
        size_bytes=(folder / "images.npy").stat().st_size,
        sha256=digest(folder / "images.npy"),
    )
    cohort = CohortFile(
        kind="image",
        images=entry,
        label_columns=("finding",),
        columns=dict.fromkeys(columns, "text"),
        has_split=has_split,
        rows=rows,
        patients=patients,
        refused=refused,
        manifest="manifest.csv",
        manifest_sha256=digest(folder / "manifest.csv"),
    )
    (folder / "cohort.json").write_text(sealed(cohort, SECRET).model_dump_json(), encoding="utf-8")


def healthy(folder: Path, count: int = 60, **changes: Any) -> Path:
    """A cohort with nothing wrong: so many patients of one image, both classes."""
    facts = {
        "images": scans(count),
        "patients": [f"P{number:03d}" for number in range(count)],
        "labels": ["normal", "pneumonia"] * (count // 2),
        "columns": {"sex": ["f", "m", "m", "f"] * (count // 4)},
        **changes,
    }
    return write_cohort(folder, facts.pop("images"), facts.pop("patients"), facts.pop("labels"), **facts)


def study(**changes: Any) -> Study:
    data = {"data.source": "cohort", "data.labels": ["normal", "pneumonia"], "data.label_column": "finding"}
    return small(PRIVATE, **{**data, **changes})


def checked(folder: Path, of: Study | None = None, secret: Secret | None = SECRET) -> Verdict:
    return check_cohort(Order(folder, of, secret))


def found(verdict: Verdict, name: str) -> tuple[Finding, ...]:
    """The findings of one check; it must have been made."""
    (check,) = [one for one in verdict.checks if one.name == name]
    assert check.not_made is None
    return check.findings


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _record(number: int, patient: str, facts: Mapping[str, Any]) -> FileRecord:
    plain = {"source": f"{number}.png", "sha256": "0" * 64, "image": number, "patient": patient, "height": 64, "width": 64}
    return FileRecord.model_validate({**plain, **facts})
