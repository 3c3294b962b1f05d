# SPDX-License-Identifier: Apache-2.0
"""Small exports of a hospital, as files: real PNG, DICOM, NIfTI, npz and CSV, written by the libraries that hospitals use."""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from client.cohorts.build import BuildOptions
from client.cohorts.ingest import PixelSettings
from client.cohorts.tables import Listed
from common.crypto.secrets import Secret

SECRET = Secret(b"s" * 32)


def image(seed: int, height: int = 24, width: int | None = None) -> np.ndarray:
    """uint8 [H, W], different for each seed."""
    return np.random.default_rng(seed).integers(0, 256, (height, width or height), dtype=np.uint8)


def write_png(path: Path, pixels: np.ndarray) -> Path:
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def write_dicom(path: Path, pixels: np.ndarray, patient: str) -> Path:
    """Explicit little endian, 8 bits, MONOCHROME2."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage, generate_uid

    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = generate_uid()
    dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate = patient, "Doe^Jane", "19610412"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.size % 2)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def write_table(path: Path, header: Sequence[str], rows: Iterable[Sequence[Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def options(images: Path, out: Path, labels: Path | None = None, listed: Listed | None = None, **changes: Any) -> BuildOptions:
    pixels = PixelSettings(**{"size_pixels": 16, **changes.pop("pixels", {})})
    return BuildOptions(images, out, labels, listed or Listed(), pixels=pixels, **changes)


def manifest_rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def all_bytes(folder: Path) -> bytes:
    """Everything in a folder, names and contents."""
    return b"\n".join(
        str(path.relative_to(folder)).encode() + b"\n" + path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    )
