# SPDX-License-Identifier: Apache-2.0
"""The grey scale on files made by hand, with every expected number computed by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian

from common.data.decode import Window, decode
from common.data.decode.decoded import Decoded
from common.data.decode.grey import BAD_WINDOW, FEW_LEVELS, FULL_RANGE, SEVERAL_WINDOWS, SHAPE_INVERSE
from common.errors import DataError
from tests.common.data.decode.files import item, words, write_dicom

RAMP = np.array([[0, 1000, 2000, 4095]], np.uint16)


def one(path: Path, window: Window | None = None) -> Decoded:
    (image,) = decode(path, window)
    return image


def shown(folder: Path, stored: npt.NDArray[Any], window: Window | None = None, **attributes: Any) -> list[list[int]]:
    pixels: list[list[int]] = one(write_dicom(folder / "a.dcm", stored, **attributes), window).pixels.tolist()
    return pixels


def test_without_a_window_the_full_range_of_the_stored_bits_is_taken(tmp_path: Path) -> None:
    image = one(write_dicom(tmp_path / "a.dcm", RAMP, BitsStored=12, HighBit=11))
    assert image.pixels.tolist() == [[0, 16004, 32007, 65535]]  # 1000 / 4095 x 65535 = 16003.7; 2000: 32007.3
    assert image.facts.remarks == (FULL_RANGE,)
    assert image.facts.bits_stored == 12


def test_signed_values_start_at_the_smallest(tmp_path: Path) -> None:
    stored = np.array([[-2048, 0, 2047]], np.int16)
    assert shown(tmp_path, stored, BitsStored=12, HighBit=11) == [[0, 32776, 65535]]  # 2048 / 4095 x 65535 = 32775.5


def test_the_window_counts_after_rescale(tmp_path: Path) -> None:
    stored = np.array([[0, 1014, 1064, 1114, 4095]], np.uint16)  # -1024, -10, 40, 90, 3071 Hounsfield
    found = shown(tmp_path, stored, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=40, WindowWidth=101)
    assert found == [[0, 328, 33095, 65535, 65535]]  # (-10 - 39.5) / 100 + .5 = .005; (40 - 39.5) / 100 + .5 = .505


def test_a_given_window_counts_before_the_files_and_is_exact(tmp_path: Path) -> None:
    stored = np.array([[0, 824, 1024, 1224, 1424]], np.uint16)
    attributes = {"RescaleSlope": 1, "RescaleIntercept": -1024, "WindowCenter": 5, "WindowWidth": 10}
    assert shown(tmp_path, stored, Window(0, 400), **attributes) == [[0, 0, 32768, 65535, 65535]]


def test_eight_bits_stay_eight_bits(tmp_path: Path) -> None:
    image = one(write_dicom(tmp_path / "a.dcm", np.array([[0, 100, 255]], np.uint8)))
    assert image.pixels.dtype == np.uint8
    assert image.pixels.tolist() == [[0, 100, 255]]


def test_monochrome1_is_turned_around_after_the_window(tmp_path: Path) -> None:
    stored = np.array([[0, 50, 100, 255]], np.uint8)
    image = one(write_dicom(tmp_path / "a.dcm", stored, PhotometricInterpretation="MONOCHROME1"), Window(50, 100))
    assert image.pixels.tolist() == [[255, 127, 0, 0]]  # 50 / 100 x 255 = 127.5, halves up: 128; 255 - 128
    assert image.facts.inverted is True


def test_presentation_lut_shape_inverse_turns_around_once(tmp_path: Path) -> None:
    stored = np.array([[0, 255]], np.uint8)
    image = one(write_dicom(tmp_path / "a.dcm", stored, PresentationLUTShape="INVERSE"))
    assert (image.pixels.tolist(), image.facts.inverted) == ([[255, 0]], True)
    assert SHAPE_INVERSE in image.facts.remarks
    both = one(write_dicom(tmp_path / "a.dcm", stored, PresentationLUTShape="INVERSE", PhotometricInterpretation="MONOCHROME1"))
    assert both.pixels.tolist() == [[255, 0]]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_in_either_polarity(tmp_path: Path, photometric: str) -> None:
    stored = np.array([[-2000, -1995, 0, 1000]], np.int16)
    attributes = {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1990, "PhotometricInterpretation": photometric}
    found = shown(tmp_path, stored, Window(0, 2000), **attributes)
    assert found[0][:2] == [0, 0]
    assert found[0][3] == (0 if photometric == "MONOCHROME1" else 65535)


def test_several_windows_give_the_first_and_say_so(tmp_path: Path) -> None:
    image = one(write_dicom(tmp_path / "a.dcm", RAMP, WindowCenter=[1000.5, 30], WindowWidth=[2001, 10]))
    assert image.pixels.tolist() == [[0, 32768, 65535, 65535]]  # 1000 is the middle of 0 … 2000
    assert SEVERAL_WINDOWS in image.facts.remarks


def test_a_window_of_width_one_is_a_threshold(tmp_path: Path) -> None:
    assert shown(tmp_path, np.array([[99, 100]], np.uint8), WindowCenter=100, WindowWidth=1) == [[0, 255]]


def test_a_window_without_width_is_not_used(tmp_path: Path) -> None:
    image = one(write_dicom(tmp_path / "a.dcm", np.array([[0, 255]], np.uint8), WindowCenter=100, WindowWidth=0))
    assert image.pixels.tolist() == [[0, 255]]
    assert image.facts.remarks == (BAD_WINDOW, FULL_RANGE)


def test_the_other_window_shapes(tmp_path: Path) -> None:
    stored = np.array([[0, 100, 200]], np.uint8)
    exact = shown(tmp_path, stored, WindowCenter=100, WindowWidth=200, VOILUTFunction="LINEAR_EXACT")
    assert exact == [[0, 128, 255]]
    curved = shown(tmp_path, stored, WindowCenter=100, WindowWidth=200, VOILUTFunction="SIGMOID")
    assert curved == [[30, 128, 225]]  # 255 / (1 + e²) = 30.4; 255 / (1 + e⁻²) = 224.6


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_modality_lut_counts_instead_of_rescale(tmp_path: Path, syntax: Any) -> None:
    table = item(LUTDescriptor=[4, 10, 16], ModalityLUTType="US", LUTData=words([0, 100, 200, 65535], syntax))
    stored = np.array([[0, 10, 11, 12, 13, 200]], np.uint16)  # below the first entry: the first; beyond the last: the last
    assert shown(tmp_path, stored, syntax=syntax, ModalityLUTSequence=[table]) == [[0, 0, 100, 200, 65535, 65535]]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_voi_lut_of_eight_bits_with_many_entries(tmp_path: Path, syntax: Any) -> None:
    """1,024 entries of 8 bits; an index kept in 8 bits would wrap at 256."""
    entries = [number // 4 for number in range(1024)]
    table = item(LUTDescriptor=[1024, 0, 8], LUTData=words(entries, syntax))
    stored = np.array([[0, 255, 256, 600, 1023, 4000]], np.uint16)
    found = shown(tmp_path, stored, syntax=syntax, VOILUTSequence=[table], BitsStored=12, HighBit=11)
    assert found == [[257 * entries[min(value, 1023)] for value in stored[0]]]


def test_a_voi_lut_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    table = item(LUTDescriptor=[300, 0, 8], LUTData=words([1, 2, 3], ImplicitVRLittleEndian))
    with pytest.raises(DataError, match="look-up table"):
        shown(tmp_path, RAMP, VOILUTSequence=[table])


def test_each_frame_has_its_own_rescale_and_window(tmp_path: Path) -> None:
    """An enhanced multi-frame file: slope by frame, window shared."""
    frames = np.array([[[100, 200]], [[100, 200]]], np.uint16)  # two frames of 1 x 2
    groups = [item(PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=0)]) for slope in (1, 2)]
    shared = item(FrameVOILUTSequence=[item(WindowCenter=200.5, WindowWidth=401)])
    path = write_dicom(
        tmp_path / "a.dcm",
        frames[0],
        NumberOfFrames=2,
        PixelData=frames.tobytes(),
        PerFrameFunctionalGroupsSequence=groups,
        SharedFunctionalGroupsSequence=[shared],
    )
    first, second = decode(path)
    assert (first.frame, second.frame) == (0, 1)
    assert first.pixels.tolist() == [[16384, 32768]]  # 100 and 200 of 0 … 400
    assert second.pixels.tolist() == [[32768, 65535]]


@pytest.mark.parametrize("slope", [b"0     ", b"nan   "])
def test_a_rescale_that_loses_the_image_is_refused(tmp_path: Path, slope: bytes) -> None:
    path = write_dicom(tmp_path / "a.dcm", RAMP, RescaleIntercept=0, RescaleSlope=1234.5)
    path.write_bytes(path.read_bytes().replace(b"1234.5", slope))
    with pytest.raises(DataError, match="rescale slope"):
        one(path)


def test_an_image_that_is_hardly_visible_says_so(tmp_path: Path) -> None:
    image = one(write_dicom(tmp_path / "a.dcm", np.array([[0, 900]], np.uint16)))
    assert FEW_LEVELS in image.facts.remarks
    assert FEW_LEVELS not in one(tmp_path / "a.dcm", Window(450, 900)).facts.remarks


def test_thirty_two_bits_go_without_a_table(tmp_path: Path) -> None:
    stored = np.array([[0, 70_000, 140_000]], np.uint32)
    assert shown(tmp_path, stored, Window(70_000, 140_000)) == [[0, 32768, 65535]]


def test_floating_point_values_need_a_window(tmp_path: Path) -> None:
    values = np.array([[0.0, 0.5, 1.0]], np.float32)
    path = write_dicom(tmp_path / "a.dcm", values)
    import pydicom

    dataset = pydicom.dcmread(path)
    del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
    dataset.FloatPixelData = values.tobytes()
    dataset.save_as(path)
    with pytest.raises(DataError, match="give a window"):
        one(path)
    assert one(path, Window(0.5, 1)).pixels.tolist() == [[0, 32768, 65535]]
