# SPDX-License-Identifier: Apache-2.0
"""Which fields of a header may identify a patient, and what a file's name looks like. Names of fields leave here, never their values.

`dicom_identity_tags` walks the whole data set, sequences included. A file that was de-identified well may still be listed: the profile
replaces some values by dummies (PatientID, StudyDate), and a dummy cannot be told from a real value. `name_findings` is a guess about text,
so it errs towards a warning: it knows the forms of dates, person names and long numbers, and the ordinary words of image files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

from common.data.decode.identity_keywords import IDENTITY_KEYWORDS

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

NameFinding = Literal["date", "person name", "long number"]

PRIVATE = "PrivateElements"
_REPEATING = {0x60003000: "OverlayData", 0x60004000: "OverlayComments"}
_DEEPEST = 16
_LONG_NUMBER_DIGITS = 7

_YEAR, _MONTH, _DAY = r"(?:19|20)\d\d", r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12]\d|3[01])"
_DATES = re.compile(
    rf"(?<!\d)(?:{_YEAR}{_MONTH}{_DAY}(?:[0-2]\d[0-5]\d(?:[0-5]\d)?)?|{_YEAR}[-_. ]{_MONTH}[-_. ]{_DAY}"
    rf"|(?:{_DAY}[-_. ]{_MONTH}|{_MONTH}[-_. ]{_DAY})[-_. ]{_YEAR}|{_DAY}{_MONTH}{_YEAR})(?!\d)"
)
_LONG_NUMBER = re.compile(rf"\d{{{_LONG_NUMBER_DIGITS},}}|(?:\d+\.){{5,}}\d+")  # the second is a DICOM unique identifier
_CARET_NAME = re.compile(r"[^\W\d_]{2,}\^+[^\W\d_]+")
_WORD = re.compile(r"[^\W\d_]+")
_CAMEL = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])")
_ORDINARY_TEXT = """
    abdomen abnormal adc ankle ap apical arm artery axial bacteria baseline benign bone brain breast bright cancer cardiac case cat cc chest
    class cohort contrast control copy coronal covid cr crop ct cxr data dataset decubitus dicom dir dwi dx echo effusion elbow export
    field file final flair flip folder follow foot fold fracture frame frontal fundus grade hand head heart hip hospital image images img
    index instance knee label lat lateral left leg lesion liver localizer localiser lung lungs malignant mammo mammogram mask mg mip mlo
    mri mr native neck negative new nm normal oblique old opacity original pa panel patient patients pelvis person pet phase
    pixel pneumonia portable positive post pre protocol pt public radiograph raw resized retina right ray rx sagittal sample scan scanner
    sc screening segmentation sequence series shoulder site skin slice source spine split stack study sub subject test thorax thumb
    thumbnail tibia time train training tumor tumour ultrasound unknown up us val valid validation view views virus volume weighted window
    wrist xr xray
"""
_ORDINARY = frozenset(_ORDINARY_TEXT.split())


@cache
def _identity_tags() -> dict[int, str]:
    from pydicom.datadict import tag_for_keyword

    return {tag: keyword for keyword in IDENTITY_KEYWORDS if (tag := tag_for_keyword(keyword)) is not None}


def dicom_identity_tags(dataset: Dataset) -> tuple[str, ...]:
    """Keywords of the PS3.15 basic profile that are present and not empty, at any depth, sorted; `PrivateElements` for private ones."""
    return tuple(sorted(set(_found(dataset, 0))))


def _found(dataset: Dataset, depth: int) -> Iterator[str]:
    for tag in tuple(dataset.keys()):
        keyword = _keyword(tag)
        if keyword is not None and not _is_empty(dataset, tag):
            yield keyword
        if depth < _DEEPEST and not tag.is_private and _is_sequence(dataset, tag):
            for item in dataset[tag].value:
                yield from _found(item, depth + 1)


def _keyword(tag: BaseTag) -> str | None:
    if tag.is_private:
        return PRIVATE
    if tag.group & 0xFF00 == 0x5000:
        return "CurveData"
    return _REPEATING.get(tag & 0xFF00FFFF) or _identity_tags().get(tag)


def _is_empty(dataset: Dataset, tag: BaseTag) -> bool:
    """Whether an element holds nothing but padding. Raw bytes are looked at as they are: nothing is parsed that need not be."""
    value = getattr(dataset.get_item(tag), "value", None)
    if isinstance(value, bytes):
        return not value.strip(b" \0")
    return value is None or (hasattr(value, "__len__") and len(value) == 0)


def _is_sequence(dataset: Dataset, tag: BaseTag) -> bool:
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    vr = getattr(dataset.get_item(tag), "VR", None)
    if vr is None or vr == "UN":
        vr = dictionary_VR(tag) if dictionary_has_tag(tag) else None
    return vr == "SQ"


def name_findings(name: str) -> tuple[NameFinding, ...]:
    """What a file's name (folders included, suffix ignored) looks like: a date, a person's name, a number as long as a patient number."""
    findings: list[NameFinding] = []
    stem = re.sub(r"(?:\.[A-Za-z]{2,5})+$", "", name)
    if _DATES.search(stem):
        findings.append("date")
    if any(_looks_like_a_person(part) for part in re.split(r"[/\\]", stem)):
        findings.append("person name")
    if _LONG_NUMBER.search(_DATES.sub(" ", stem)):
        findings.append("long number")
    return tuple(findings)


def _looks_like_a_person(part: str) -> bool:
    """`DOE^JANE`, or two neighbouring words that begin with a capital and are no ordinary words of image files."""
    if _CARET_NAME.search(part):
        return True
    words = [_WORD.fullmatch(token) is not None and _could_be_a_name(token) for token in re.split(r"[\s_,.\-]+", _CAMEL.sub("_", part))]
    return any(first and second for first, second in pairwise(words))


def _could_be_a_name(word: str) -> bool:
    return len(word) > 1 and word[0].isupper() and word.casefold() not in _ORDINARY
