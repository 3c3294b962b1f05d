# SPDX-License-Identifier: Apache-2.0
"""DICOM files made by hand, and where the shared samples lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian, SecondaryCaptureImageStorage

SAMPLES = Path(__file__).resolve().parents[4].parent / "shared" / "data" / "dicom_samples"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="the shared DICOM samples are not here")


def write_dicom(path: Path, pixels: np.ndarray[Any, Any], *, syntax: UID = ExplicitVRLittleEndian, **attributes: Any) -> Path:
    """Write stored values [H, W], [H, W, 3] (planar configuration 0) as a DICOM file; `attributes` by keyword override all."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.SOPClassUID = SecondaryCaptureImageStorage
    dataset.SOPInstanceUID = "1.2.3.4"
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    dataset.PhotometricInterpretation = "RGB" if pixels.ndim == 3 else "MONOCHROME2"
    if pixels.ndim == 3:
        dataset.PlanarConfiguration = 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    order = "<" if syntax.is_little_endian else ">"
    content = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    dataset.PixelData = content + b"\0" * (len(content) % 2)
    dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


def words(numbers: list[int], syntax: UID) -> bytes:
    """Numbers as words of 16 bits in the byte order of `syntax`."""
    return np.array(numbers, "<u2" if syntax.is_little_endian else ">u2").tobytes()


def item(**attributes: Any) -> Dataset:
    """One item of a sequence."""
    dataset = Dataset()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
        if isinstance(value, bytes):
            dataset[keyword].VR = "OW"
    return dataset
