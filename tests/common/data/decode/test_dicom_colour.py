# SPDX-License-Identifier: Apache-2.0
"""Colour, palettes, frames and byte order on files made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, RLELossless

from common.data.decode import decode
from common.data.decode.dicom import REDUCED_TO_8_BITS
from common.data.decode.lookup import LookUp
from common.errors import DataError
from tests.common.data.decode.files import words, write_dicom

COLOURS = np.array([[[1, 2, 3], [40, 50, 60]], [[70, 80, 90], [100, 110, 120]]], np.uint8)


def pixels(path: Path) -> Any:
    (image,) = decode(path)
    return image.pixels


def test_planar_configuration_one_is_put_right(tmp_path: Path) -> None:
    planes = np.moveaxis(COLOURS, 2, 0).tobytes()
    path = write_dicom(tmp_path / "a.dcm", COLOURS, PlanarConfiguration=1, PixelData=planes)
    np.testing.assert_array_equal(pixels(path), COLOURS)


def test_ybr_full_becomes_rgb(tmp_path: Path) -> None:
    """PS3.3 C.7.6.3.1.2, inverse: R = Y + 1.402 (Cr - 128); with Cb = Cr = 128 it is grey."""
    stored = np.array([[[100, 128, 128], [100, 128, 178]]], np.uint8)
    path = write_dicom(tmp_path / "a.dcm", stored, PhotometricInterpretation="YBR_FULL")
    found = pixels(path).astype(int)
    assert np.abs(found - [[[100, 100, 100], [170, 64, 100]]]).max() <= 1  # 100 + 70.1; 100 - .71414 x 50 = 64.3


def test_colour_of_16_bits_keeps_the_upper_eight(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", COLOURS.astype(np.uint16) * 256 + 255)
    (image,) = decode(path)
    np.testing.assert_array_equal(image.pixels, COLOURS)
    assert image.facts.remarks == (REDUCED_TO_8_BITS,)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_sixteen_signed_bits_in_either_byte_order(tmp_path: Path, syntax: Any) -> None:
    stored = np.array([[-32768, 0, 32767]], np.int16)
    assert pixels(write_dicom(tmp_path / "a.dcm", stored, syntax=syntax)).tolist() == [[0, 32768, 65535]]


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_palette_of_16_bits_in_either_byte_order(tmp_path: Path, syntax: Any) -> None:
    found = pixels(with_palette(tmp_path, syntax, [256, 0, 16], [[0, 0xFF00, 0x1234], [0, 0, 0x8000], [0, 0x7F7F, 0xFFFF]]))
    assert found.tolist() == [[[0, 0, 0], [255, 0, 0x7F], [0x12, 0x80, 0xFF]]]


def test_a_palette_whose_16_bits_hold_8(tmp_path: Path) -> None:
    found = pixels(with_palette(tmp_path, ExplicitVRLittleEndian, [3, 0, 16], [[0, 255, 18], [0, 0, 128], [0, 127, 255]]))
    assert found.tolist() == [[[0, 0, 0], [255, 0, 127], [18, 128, 255]]]


def with_palette(folder: Path, syntax: Any, descriptor: list[int], tables: list[list[int]]) -> Path:
    """A file with stored values 0, 1, 2 and a palette that is filled up with zeros."""
    filled = [table + [0] * (descriptor[0] - len(table)) for table in tables]
    path = write_dicom(folder / "a.dcm", np.array([[0, 1, 2]], np.uint8), syntax=syntax, PhotometricInterpretation="PALETTE COLOR")
    dataset = pydicom.dcmread(path)
    for colour, table in zip(("Red", "Green", "Blue"), filled, strict=True):
        setattr(dataset, f"{colour}PaletteColorLookupTableDescriptor", descriptor)
        dataset[f"{colour}PaletteColorLookupTableDescriptor"].VR = "US"
        setattr(dataset, f"{colour}PaletteColorLookupTableData", words(table, syntax))
    dataset.save_as(path)
    return path


def test_a_palette_file_without_palette_is_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8), PhotometricInterpretation="PALETTE COLOR")
    with pytest.raises(DataError, match="look-up table"):
        pixels(path)


def test_a_look_up_holds_its_ends() -> None:
    table = LookUp(np.array([7, 8, 9], np.uint16), first=-1, bits=8)
    assert table.of(np.array([-5, -1, 0, 1, 300])).tolist() == [7, 7, 8, 9, 9]


def test_rle_frames_come_one_by_one_with_their_numbers(tmp_path: Path) -> None:
    frames = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    path = write_dicom(tmp_path / "a.dcm", frames[0], NumberOfFrames=3, PixelData=frames.tobytes())
    dataset = pydicom.dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)
    found = list(decode(path))
    assert [image.frame for image in found] == [0, 1, 2]
    np.testing.assert_array_equal(np.stack([image.pixels for image in found]), frames)


def test_a_colour_encoding_that_is_not_supported_is_named(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", COLOURS, PhotometricInterpretation="YBR_PARTIAL_420")
    with pytest.raises(DataError, match="YBR_PARTIAL_420 is not supported; export it as RGB or grey"):
        pixels(path)
