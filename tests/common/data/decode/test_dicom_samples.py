# SPDX-License-Identifier: Apache-2.0
"""The 22 shared DICOM files: stored values against pydicom's array, conversions against a computation with numbers written here."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest

from common.data.decode import decode
from common.data.decode.decoded import Decoded
from common.data.decode.dicom import IDENTITY_REMOVED, OVERLAY, stored_frames
from common.data.decode.grey import FEW_LEVELS, FULL_RANGE, SEVERAL_WINDOWS
from tests.common.data.decode.files import SAMPLES, needs_samples

pytestmark = needs_samples


@dataclass(frozen=True)
class Grey:
    """What is to happen to a grey sample, read off its header by eye: value -> slope, intercept -> black … white -> polarity."""

    bits: int
    window: tuple[float, float] | None = None  # centre, width; linear
    rescale: tuple[float, float] = (1.0, 0.0)
    signed: bool = False
    inverted: bool = False


GREY = {
    "693_J2KR.dcm": Grey(16, (40, 100), (1, -1024), signed=True),
    "693_UNCI.dcm": Grey(14, (40, 100), (1, -1024), signed=True),
    "693_UNCR.dcm": Grey(14, (40, 100), (1, -1024), signed=True),
    "JLSL_08_07_0_1F.dcm": Grey(7),
    "JLSL_16_15_1_1F.dcm": Grey(15, signed=True),
    "JPEG-LL.dcm": Grey(16, signed=True),
    "JPEG2000_UNC.dcm": Grey(16, signed=True),
    "JPGLosslessP14SV1_1s_1f_8b.dcm": Grey(8, (127, 254)),
    "MR-SIEMENS-DICOM-WithOverlays.dcm": Grey(12, (450, 790)),
    "MR2_J2KI.dcm": Grey(12, (1000, 2000), (3.774114, 0.000061)),
    "MR2_J2KR.dcm": Grey(12, (1000, 2000), (3.774114, 0.000061)),
    "RG1_J2KI.dcm": Grey(15, (15000, 30000), inverted=True),
    "RG3_J2KI.dcm": Grey(10, (550, 1024), inverted=True),
    "RG3_J2KR.dcm": Grey(10, (550, 1024), inverted=True),
}
PALETTES = [f"OBXXXX1A{kind}.dcm" for kind in ("", "_2frame", "_expb", "_expb_2frame", "_rle", "_rle_2frame")]
COLOUR = ["HTJ2KLossless_08_RGB.dcm", "HTJ2K_08_RGB.dcm"]
ALL = sorted([*GREY, *PALETTES, *COLOUR])


def read(name: str) -> pydicom.FileDataset:
    return pydicom.dcmread(SAMPLES / name)


@cache
def theirs(name: str) -> npt.NDArray[Any]:
    """Stored values as pydicom's own property gives them."""
    return read(name).pixel_array


@cache
def images(name: str) -> tuple[Decoded, ...]:
    return tuple(decode(SAMPLES / name))


def expected(stored: npt.NDArray[Any], rule: Grey) -> npt.NDArray[np.int64]:
    """PS3.3 C.11.1 and C.11.2.1.2.1, written out."""
    top = 255 if rule.bits <= 8 else 65535
    values = stored.astype(np.float64) * rule.rescale[0] + rule.rescale[1]
    if rule.window:
        centre, width = rule.window
        share = (values - (centre - 0.5)) / (width - 1) + 0.5
    else:
        lowest = -(2 ** (rule.bits - 1)) if rule.signed else 0
        share = (values - lowest) / (2**rule.bits - 1)
    level = np.floor(np.clip(share, 0, 1) * top + 0.5).astype(np.int64)
    return top - level if rule.inverted else level


def test_every_sample_is_in_this_file() -> None:
    assert sorted(path.name for path in SAMPLES.glob("*.dcm")) == ALL
    assert len(ALL) == 22


@pytest.mark.parametrize("name", ALL)
def test_stored_values_are_those_of_pydicom(name: str) -> None:
    ours = np.stack([stored for stored, _ in stored_frames(read(name))])
    assert ours.dtype == theirs(name).dtype
    np.testing.assert_array_equal(ours.reshape(theirs(name).shape), theirs(name))


@pytest.mark.parametrize("name", GREY)
def test_grey_is_rescaled_windowed_and_turned_as_the_header_says(name: str) -> None:
    rule, (image,) = GREY[name], images(name)
    stored = theirs(name)
    assert image.pixels.dtype == (np.uint8 if rule.bits <= 8 else np.uint16)
    assert np.abs(image.pixels.astype(np.int64) - expected(stored, rule)).max() <= 1  # rounding at an exact half
    assert not image.constant
    assert (image.facts.bits_stored, image.facts.inverted) == (rule.bits, rule.inverted)
    assert image.facts.photometric == ("MONOCHROME1" if rule.inverted else "MONOCHROME2")
    assert (FULL_RANGE in image.facts.remarks) == (rule.window is None)


def test_a_monochrome1_radiograph_is_turned_around() -> None:
    """RG3 is a leg: large stored values are air, which is black; bone, where little arrived, is white."""
    (image,) = images("RG3_J2KR.dcm")
    stored = theirs("RG3_J2KR.dcm")
    assert np.corrcoef(image.pixels[::16, ::16].ravel(), stored[::16, ::16].ravel())[0, 1] < -0.9


def test_the_same_ct_slice_gives_the_same_image_compressed_or_not() -> None:
    np.testing.assert_array_equal(images("693_J2KR.dcm")[0].pixels, images("693_UNCR.dcm")[0].pixels)


def test_an_uncompressed_file_read_without_pydicom_gives_the_same_image() -> None:
    """693_UNCR: the pixel data are the last 524,288 bytes (512 x 512 words of 16 bits, little endian)."""
    stored = np.frombuffer((SAMPLES / "693_UNCR.dcm").read_bytes()[-524288:], "<i2").reshape(512, 512)
    assert np.abs(images("693_UNCR.dcm")[0].pixels.astype(np.int64) - expected(stored, GREY["693_UNCR.dcm"])).max() <= 1


@pytest.mark.parametrize("name", PALETTES)
def test_palettes_give_the_upper_eight_bits_of_their_entries(name: str) -> None:
    little = read("OBXXXX1A.dcm")  # its entries are words of 16 bits, little endian
    tables = [np.frombuffer(little[f"{colour}PaletteColorLookupTableData"].value, "<u2") for colour in ("Red", "Green", "Blue")]
    indices = theirs(name).reshape(-1, 600, 800)
    found = images(name)
    assert [image.frame for image in found] == list(range(len(indices)))
    for image, index in zip(found, indices, strict=True):
        np.testing.assert_array_equal(image.pixels, np.stack([table[index] // 256 for table in tables], axis=-1))
    assert found[0].pixels.mean() > 10  # big endian entries taken for little endian ones are nearly all black


def test_colour_is_passed_on_as_it_is() -> None:
    for name in COLOUR:
        (image,) = images(name)
        np.testing.assert_array_equal(image.pixels, theirs(name))
        assert image.facts.inverted is None


def test_what_cannot_be_shown_is_said() -> None:
    assert OVERLAY in images("MR-SIEMENS-DICOM-WithOverlays.dcm")[0].facts.remarks
    assert SEVERAL_WINDOWS in images("MR-SIEMENS-DICOM-WithOverlays.dcm")[0].facts.remarks
    assert FEW_LEVELS in images("JPEG-LL.dcm")[0].facts.remarks
    assert IDENTITY_REMOVED in images("693_UNCR.dcm")[0].facts.remarks


def test_identity_is_named_by_keyword_and_the_patient_id_is_the_headers() -> None:
    facts = images("RG1_J2KI.dcm")[0].facts
    assert {"PatientID", "PatientName", "PatientBirthDate", "StudyDate", "InstitutionName", "OtherPatientIDs"} <= set(facts.identity_tags)
    assert facts.patient_id == "9RG1"
    assert images("JPGLosslessP14SV1_1s_1f_8b.dcm")[0].facts.burned_in == "no"
    assert images("HTJ2K_08_RGB.dcm")[0].facts.patient_id is None
