# SPDX-License-Identifier: Apache-2.0
"""The record of a source file: what goes in, and what must never."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from client.cohorts.records import FileRecord, read_record
from common.data.decode import decode
from common.errors import DataError
from tests.common.data.decode.files import write_dicom

SHA, PSEUDONYM = "a" * 64, "wrp1-" + "0123456789abcdef" * 4


def record(**changes: Any) -> FileRecord:
    return FileRecord(**{"source": "a/1.dcm", "sha256": SHA, "image": 0, "patient": PSEUDONYM, **changes})


def test_of_a_decoded_image_keeps_no_value_of_the_header(tmp_path: Path) -> None:
    path = write_dicom(
        tmp_path / "a.dcm",
        np.full((3, 4), 9, np.uint16),
        PatientID="4711",
        PatientName="Muster^Erika",
        StudyDate="20240131",
        PhotometricInterpretation="MONOCHROME1",
        BurnedInAnnotation="NO",
    )
    (image,) = decode(path)
    made = FileRecord.of("a.dcm", SHA, 5, PSEUDONYM, image, name_findings=("date",))
    assert made.identity_tags == ("PatientID", "PatientName", "StudyDate")
    assert (made.height, made.width, made.bits_stored, made.photometric) == (3, 4, 16, "MONOCHROME1")
    assert (made.image, made.frame, made.constant, made.inverted, made.burned_in) == (5, 0, True, True, "no")
    assert not any(secret in made.line() for secret in ("4711", "Muster", "20240131"))
    assert read_record(made.line()) == made


def test_a_refused_file_has_a_problem_and_no_image() -> None:
    made = record(image=None, patient=None, problem="is empty; copy it again")
    assert made.refused
    assert not record().refused
    assert read_record(made.line()) == made
    assert made.line().count("\n") == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"patient": "4711"},
        {"patient": PSEUDONYM + "0"},
        {"identity_tags": ("PatientName=Muster^Erika",)},
        {"identity_tags": ("19700131",)},
        {"sha256": "abc"},
        {"image": None},
        {"problem": "refused and used"},
        {"name_findings": ("Muster",)},
        {"birth_date": "19700131"},
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        record(**changes)


@pytest.mark.parametrize("line", ["", "{", '{"source": "a"}', record().line()[:-20]])
def test_a_damaged_line_is_a_data_error(line: str) -> None:
    with pytest.raises(DataError, match="damaged; build the cohort again"):
        read_record(line)
