# SPDX-License-Identifier: Apache-2.0
"""DICOM files that cannot be decoded: one DataError with reason and remedy, which repeats nothing of the header."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.uid import DeflatedExplicitVRLittleEndian

from common.data.decode import decode, dicom
from common.errors import DataError
from tests.common.data.decode.files import write_dicom

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8)
SECRET = "Muster^Erika"


def refusal_of(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        list(decode(path))
    (problem,) = caught.value.problems
    assert "; " in problem
    return problem


def test_a_text_file_named_dcm(tmp_path: Path) -> None:
    path = tmp_path / "letter.dcm"
    path.write_text("Dear colleague, " * 40)
    assert refusal_of(path).startswith("is no image: neither PNG, JPEG, DICOM nor NIfTI")


def test_an_empty_file_and_a_folder_and_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty.dcm").touch()
    assert refusal_of(tmp_path / "empty.dcm").startswith("is empty")
    assert refusal_of(tmp_path).startswith("cannot be read (Is a directory)")
    assert refusal_of(tmp_path / "absent.dcm").startswith("cannot be read (No such file")


@pytest.mark.parametrize("start", [b"GIF89a", b"BM", b"II*\0", b"%PDF-1.4", b"PK\x03\x04"])
def test_other_formats_are_named(tmp_path: Path, start: bytes) -> None:
    (tmp_path / "a").write_bytes(start + b"\1" * 400)
    assert "not PNG, JPEG, DICOM or NIfTI; convert it" in refusal_of(tmp_path / "a")


def test_a_header_that_says_too_many_pixels_is_refused_before_decoding(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", GREY, Rows=60_000, Columns=60_000)
    assert refusal_of(path).startswith("the header says 60000 x 60000 pixels, more than the limit")


def test_a_header_without_height_is_refused(tmp_path: Path) -> None:
    assert refusal_of(write_dicom(tmp_path / "a.dcm", GREY, Rows=0)).startswith("the header gives the image no height")


def test_a_report_holds_no_pixels(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", GREY)
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    assert refusal_of(path).startswith("is DICOM and holds no pixels")


def test_a_video_is_refused_by_the_name_of_its_encoding(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", GREY)
    path.write_bytes(path.read_bytes().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.4.100\0"[:20]))
    assert "its transfer syntax" in refusal_of(path)


def test_a_deflated_file_that_grows_too_large_is_refused_before_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dicom(tmp_path / "a.dcm", np.zeros((2000, 2000), np.uint8), syntax=DeflatedExplicitVRLittleEndian)
    assert path.stat().st_size < 20_000
    assert next(iter(decode(path))).pixels.shape == (2000, 2000)
    monkeypatch.setattr(dicom, "MOST_VOLUME_BYTES", 1_000_000)
    assert refusal_of(path).startswith("inflates to more than 1000000 bytes")


def test_truncated_pixels_are_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", GREY)
    path.write_bytes(path.read_bytes()[:-10])
    assert refusal_of(path).startswith("is damaged or incomplete")


def test_bits_that_contradict_are_refused(tmp_path: Path) -> None:
    assert "contradict" in refusal_of(write_dicom(tmp_path / "a.dcm", GREY, BitsStored=12))


def test_a_later_frame_that_is_damaged_does_not_take_the_first_along(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "a.dcm", GREY, NumberOfFrames=2, PixelData=GREY.tobytes() * 2)
    dataset = pydicom.dcmread(path)
    dataset.compress(pydicom.uid.RLELossless)
    dataset.save_as(path)
    content = path.read_bytes()
    second = content.rindex(b"\xfe\xff\x00\xe0")  # the item of the second frame; its RLE header follows
    path.write_bytes(content[: second + 8] + b"\xff" * 64 + content[second + 72 :])
    images = decode(path)
    np.testing.assert_array_equal(next(images).pixels, GREY)
    with pytest.raises(DataError, match="RLE Lossless"):
        next(images)


def test_no_damage_gets_past_the_refusal_and_no_message_repeats_the_header(tmp_path: Path) -> None:
    """Cut and altered headers: pydicom raises a dozen kinds of exceptions, some of which quote the bytes that they met."""
    whole = write_dicom(tmp_path / "whole.dcm", GREY, PatientName=SECRET, PatientID="4711-SECRET", PatientBirthDate="19700101").read_bytes()
    dice, refused = random.Random(7), 0
    for number in range(150):
        content = bytearray(whole)
        for _ in range(dice.choice([1, 4, 20])):
            content[dice.randrange(128, len(content))] = dice.choice([0, 255, dice.randrange(256)])
        path = tmp_path / "a.dcm"
        path.write_bytes(content[: dice.randrange(140, len(content))] if number % 3 == 0 else content)
        try:
            list(decode(path))
        except DataError as error:
            refused += 1
            assert not any(secret in str(error) for secret in ("Muster", "Erika", "SECRET", "1970"))
            assert error.__suppress_context__ or error.__context__ is None  # a traceback would quote pydicom
    assert refused > 40
