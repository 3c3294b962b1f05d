# SPDX-License-Identifier: Apache-2.0
"""Which header fields and which file names are held to identify somebody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset

from common.data.decode import decode
from common.data.decode.identity import PRIVATE, dicom_identity_tags, name_findings
from common.data.decode.identity_keywords import IDENTITY_KEYWORDS
from tests.common.data.decode.files import item, write_dicom


def test_every_keyword_is_in_pydicoms_dictionary_and_none_is_a_uid() -> None:
    assert [keyword for keyword in IDENTITY_KEYWORDS if tag_for_keyword(keyword) is None] == []
    assert len(IDENTITY_KEYWORDS) == 559
    assert not any(keyword.endswith("UID") for keyword in IDENTITY_KEYWORDS)
    assert {
        "PatientName",
        "PatientID",
        "PatientBirthDate",
        "AccessionNumber",
        "InstitutionName",
        "StudyDate",
        "ImageComments",
    } < IDENTITY_KEYWORDS


def test_present_and_not_empty_at_any_depth() -> None:
    dataset = Dataset()
    dataset.PatientName, dataset.PatientID, dataset.StudyDate = "Muster^Erika", "", None
    dataset.Modality, dataset.StudyInstanceUID = "CR", "1.2.3"
    dataset.ReferencedImageSequence = [item(StationName="room 5")]
    dataset.ReferencedStudySequence = []
    assert dicom_identity_tags(dataset) == ("PatientName", "StationName")


def test_repeating_groups_and_private_elements() -> None:
    dataset = Dataset()
    dataset.add_new(0x60003000, "OW", b"\1\0")
    dataset.add_new(0x60024000, "LT", "drawn by E. Muster")
    dataset.add_new(0x50003000, "OW", b"\1\0")
    dataset.add_new(0x00090010, "LO", "MAKER")
    dataset.add_new(0x00091001, "LO", "Muster")
    assert dicom_identity_tags(dataset) == ("CurveData", "OverlayComments", "OverlayData", PRIVATE)


@pytest.mark.parametrize("implicit", [True, False])
def test_from_a_file_padding_is_empty_and_sequences_are_walked(tmp_path: Path, implicit: bool) -> None:
    syntax = pydicom.uid.ImplicitVRLittleEndian if implicit else pydicom.uid.ExplicitVRLittleEndian
    path = write_dicom(
        tmp_path / "a.dcm",
        np.zeros((2, 2), np.uint8),
        syntax=syntax,
        PatientName="  ",
        PatientID="4711 ",
        BurnedInAnnotation="YES",
        RequestAttributesSequence=[item(ScheduledProcedureStepID="X-1", RequestedProcedureID="")],
    )
    (image,) = decode(path)
    assert image.facts.identity_tags == ("PatientID", "RequestAttributesSequence", "ScheduledProcedureStepID")
    assert image.facts.patient_id == "4711"
    assert image.facts.burned_in == "yes"


@pytest.mark.parametrize(
    ("name", "findings"),
    [
        ("20240131.dcm", ("date",)),
        ("scan_2024-01-31_a.png", ("date",)),
        ("31.01.1950.png", ("date",)),
        ("20240131123059.dcm", ("date",)),
        ("DOE^JANE.dcm", ("person name",)),
        ("Muster_Erika/1.png", ("person name",)),
        ("ErikaMuster.png", ("person name",)),
        ("Müller, Jörg.nii.gz", ("person name",)),
        ("MUSTER_ERIKA_19700131_00471108.dcm", ("date", "person name", "long number")),
        ("00471108.png", ("long number",)),
        ("1.2.840.10008.5.1.4.dcm", ("long number",)),
        ("person1_bacteria_1.jpeg", ()),
        ("NORMAL2-IM-0115-0001.jpeg", ()),
        ("Chest_Xray_0001.png", ()),
        ("ChestXray/Left_Lung.png", ()),
        ("patient_12/IM000123.dcm", ()),
        ("99999999.99.png", ("long number",)),
        ("2024.png", ()),
        ("20241399.png", ("long number",)),
    ],
)
def test_what_a_name_looks_like(name: str, findings: tuple[str, ...]) -> None:
    assert name_findings(name) == findings
