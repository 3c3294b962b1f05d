# SPDX-License-Identifier: Apache-2.0
"""Checks for what may say who a patient is: headers, burned-in text, file names, and cells of the manifest.

Headers and file names never enter a cohort; they are reported because the source folder, and the working papers in `ingest/`, have them.
Burned-in text is in the pixels and does enter. A header that says nothing about it proves nothing: look at the page.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import numpy as np

from client.cohorts.columns import column_problem
from client.cohorts.findings import Check, Finding, Material, Severity, counted, examples
from client.cohorts.records import FileRecord

_MOST_NAMED: Final = 6


def headers(material: Material) -> Iterable[Finding]:
    """Source files whose header has fields of the basic profile of DICOM PS3.15 (table E.1-1) that are not empty."""
    named = _files(one for one in material.needed_records() if one.identity_tags)
    if not named:
        return []
    tags = Counter(tag for one in named for tag in one.identity_tags).most_common()
    shown = ", ".join(f"{tag} {count:,}" for tag, count in tags[:_MOST_NAMED]) + (
        f", and {len(tags) - _MOST_NAMED} more" if len(tags) > _MOST_NAMED else ""
    )
    files = counted(len(named), "source file names or describes", "source files name or describe")
    text = f"{files} the patient in the header: {shown}. None of it entered the cohort"
    return [Finding(Severity.WARNING, len(named), text, "keep the source folder closed, or de-identify the export", _images(named))]


def burned_in(material: Material) -> Iterable[Finding]:
    """Images whose header says that text is burned into the pixels."""
    said = [one for one in material.needed_records() if one.burned_in == "yes" and one.image is not None]
    if not said:
        return []
    images = counted(len(said), "image has", "images have")
    text = f"{images} text burned into the pixels, as the header says: a name may be readable in the cohort"
    return [Finding(Severity.ERROR, len(said), text, "look at them; mask the text at the source, or leave them out", _images(said))]


def file_names(material: Material) -> Iterable[Finding]:
    """Source files whose names look like a date, a name or a number that may be an id."""
    named = _files(one for one in material.needed_records() if one.name_findings)
    if not named:
        return []
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in Counter(kind for one in named for kind in one.name_findings).most_common())
    text = (
        f"{counted(len(named), 'source file has', 'source files have')} a name that looks as if it said something about a patient: {kinds}"
    )
    remedy = "the names are not in the cohort; ingest/ has them, and may be deleted when the check is done"
    return [Finding(Severity.WARNING, len(named), text, remedy, _images(named))]


def cells(material: Material) -> Iterable[Finding]:
    """Columns of the manifest that the build would refuse: dates, names, numbers as long as an id."""
    for column in (*material.cohort.label_columns, *material.cohort.columns):
        problem = column_problem(column, material.manifest.cells[column])
        if problem is not None:
            yield Finding(Severity.ERROR, len(material.manifest), problem.partition(";")[0], "build the cohort again without this column")


def _files(records: Iterable[FileRecord]) -> list[FileRecord]:
    """One record of each file; a file of many frames has many."""
    return list({one.source: one for one in records}.values())


def _images(records: Iterable[FileRecord]) -> tuple[int, ...]:
    return examples(np.array([one.image for one in records if one.image is not None], dtype=np.int64))


IDENTITY_CHECKS: tuple[tuple[str, Check], ...] = (
    ("identity in headers", headers),
    ("burned-in text", burned_in),
    ("identity in file names", file_names),
    ("identity in cells", cells),
)
