# SPDX-License-Identifier: Apache-2.0
"""NIfTI volumes whose voxels say where in the body they lie."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from common.data.decode import Slices, Window, decode
from common.data.decode.decoded import Decoded
from common.data.decode.grey import FULL_RANGE
from common.data.decode.nifti import NO_ORIENTATION, NOT_SQUARE
from common.errors import DataError

RAS = np.diag([1.0, 1.0, 1.0, 1.0])
X, Y, Z = np.indices((3, 4, 5), dtype=np.uint8)
PLACE = 100 * X + 10 * Y + Z  # x: to the patient's right, y: to the front, z: up (uint8: at most 234)


def write(path: Path, voxels: npt.NDArray[Any], affine: npt.NDArray[Any] = RAS, *, cal: tuple[float, float] | None = None) -> Path:
    image = nibabel.Nifti1Image(voxels, affine)
    if cal:
        image.header["cal_min"], image.header["cal_max"] = cal
    nibabel.save(image, path)
    return path


def images(path: Path, window: Window | None = None, slices: Slices | None = None) -> list[Decoded]:
    return list(decode(path, window, slices))


def test_axial_slices_from_foot_to_head_with_the_right_hand_on_the_left(tmp_path: Path) -> None:
    found = images(write(tmp_path / "a.nii", PLACE))
    assert [image.frame for image in found] == [0, 1, 2, 3, 4]
    assert found[1].pixels.tolist() == [
        [231, 131, 31],  # the front (y = 3), from the right (x = 2) to the left
        [221, 121, 21],
        [211, 111, 11],
        [201, 101, 1],
    ]
    assert found[0].facts.bits_stored == 8
    assert found[0].pixels.dtype == np.uint8


def test_coronal_and_sagittal_slices_have_the_head_on_top(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", PLACE)
    coronal = images(path, slices=Slices("coronal"))
    assert len(coronal) == 4
    assert coronal[2].pixels[0].tolist() == [224, 124, 24]  # z = 4 on top, right hand on the left
    assert coronal[2].pixels[-1].tolist() == [220, 120, 20]
    sagittal = images(path, slices=Slices("sagittal"))
    assert len(sagittal) == 3
    assert sagittal[1].pixels[0].tolist() == [134, 124, 114, 104]  # z = 4 on top, front on the left
    assert sagittal[1].pixels.shape == (5, 4)


def test_the_way_it_is_stored_does_not_matter(tmp_path: Path) -> None:
    """The same body stored with axes swapped and turned: (z down, x to the left, y to the front)."""
    stored = np.transpose(PLACE, (2, 0, 1))[::-1, ::-1]
    affine = np.array([[0, -1, 0, 2], [0, 0, 1, 0], [-1, 0, 0, 4], [0, 0, 0, 1]], float)
    for axis in ("axial", "coronal", "sagittal"):
        straight = images(write(tmp_path / "a.nii", PLACE), slices=Slices(axis))
        turned = images(write(tmp_path / "b.nii", stored, affine), slices=Slices(axis))
        np.testing.assert_array_equal(np.stack([i.pixels for i in straight]), np.stack([i.pixels for i in turned]))


def test_the_middle_slice_only(tmp_path: Path) -> None:
    (image,) = images(write(tmp_path / "a.nii.gz", PLACE), slices=Slices("axial", middle_only=True))
    assert image.frame == 2
    assert image.pixels[0, 0] == 232


def test_two_dimensions_are_one_slice(tmp_path: Path) -> None:
    (image,) = images(write(tmp_path / "a.nii", PLACE[:, :, 1]))
    assert image.pixels.shape == (4, 3)


def test_a_window_and_the_scaling_of_the_header(tmp_path: Path) -> None:
    content = bytearray(write(tmp_path / "a.nii", np.array([0, 50, 100, 200], np.int16).reshape(1, 4, 1)).read_bytes())
    content[112:120] = np.array([2, -100], "<f4").tobytes()  # scl_slope, scl_inter; nibabel does not write them as told
    (tmp_path / "a.nii").write_bytes(content)
    (found,) = images(tmp_path / "a.nii", Window(100, 400))  # -100 … 300
    assert found.pixels.ravel().tolist() == [65535, 32768, 16384, 0]  # the front first


def test_the_range_is_the_windows_else_cal_else_the_types(tmp_path: Path) -> None:
    voxels = np.array([0, 100, 400, 1000], np.int16).reshape(4, 1, 1)
    (found,) = images(write(tmp_path / "a.nii", voxels, cal=(0, 400)))
    assert found.pixels.ravel().tolist() == [65535, 65535, 16384, 0]
    (found,) = images(write(tmp_path / "a.nii", voxels))
    assert found.pixels.ravel().tolist() == [33768, 33168, 32868, 32768]
    assert FULL_RANGE in found.facts.remarks


def test_floating_point_values_need_a_window(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", np.array([0, 0.25, 0.5, np.nan]).reshape(4, 1, 1))
    with pytest.raises(DataError, match="no known range; give a window: --window CENTRE,WIDTH"):
        images(path)
    (found,) = images(path, Window(0.25, 0.5))
    assert found.pixels.ravel().tolist() == [0, 65535, 32768, 0]  # what is no number is black


def test_what_is_odd_is_said(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", PLACE, np.diag([1.0, 1.0, 5.0, 1.0]))
    assert NOT_SQUARE not in images(path)[0].facts.remarks
    assert NOT_SQUARE in images(path, slices=Slices("coronal"))[0].facts.remarks
    image = nibabel.Nifti1Image(PLACE, None)
    nibabel.save(image, tmp_path / "b.nii")
    assert NO_ORIENTATION in images(tmp_path / "b.nii")[0].facts.remarks


def test_a_series_and_colours_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="series of volumes"):
        images(write(tmp_path / "a.nii", np.zeros((2, 2, 2, 3), np.uint8)))
    colours = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(DataError, match="colours"):
        images(write(tmp_path / "b.nii", colours))


def test_a_header_that_says_a_huge_volume_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii", PLACE)
    content = bytearray(path.read_bytes())
    content[42:48] = np.array([30_000, 30_000, 30_000], "<i2").tobytes()  # dim[1..3]
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(content)))
    with pytest.raises(DataError, match="a volume of more than"):
        images(tmp_path / "a.nii.gz")


def test_damage_is_refused_without_a_word_of_nibabel_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    whole = write(tmp_path / "whole.nii", PLACE).read_bytes()
    dice, refused = random.Random(5), 0
    for number in range(60):
        content = bytearray(whole)
        for _ in range(5):
            content[dice.randrange(4, 340)] = dice.choice([0, 255, dice.randrange(256)])
        (tmp_path / "a.nii").write_bytes(content[: dice.randrange(349, len(content) - 8)] if number % 2 else content)
        try:
            images(tmp_path / "a.nii")
        except DataError:
            refused += 1
    assert refused > 20
    assert caplog.records == []


def test_nifti_without_its_suffix_and_a_text_with_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its name does not say so"):
        images(write(tmp_path / "a.nii", PLACE).rename(tmp_path / "a.img4"))
    (tmp_path / "b.nii").write_text("no volume " * 100)
    with pytest.raises(DataError, match="is no image"):
        images(tmp_path / "b.nii")
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(b"no volume " * 100))
    with pytest.raises(DataError, match="in nibabel"):
        images(tmp_path / "c.nii.gz")


def test_nifti_2_and_text_fields(tmp_path: Path) -> None:
    image = nibabel.Nifti2Image(PLACE, RAS)
    image.header["descrip"] = b"Muster^Erika"
    image.header["aux_file"] = b"list.txt"
    nibabel.save(image, tmp_path / "a.nii")
    found = images(tmp_path / "a.nii")
    assert len(found) == 5
    assert found[0].facts.identity_tags == ("NIfTI.aux_file", "NIfTI.descrip")
