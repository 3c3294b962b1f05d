# SPDX-License-Identifier: Apache-2.0
"""Checks of patients, labels and split: what a study needs of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from client.cohorts.findings import Check, Finding, Material, NotMade, Severity, TextArray, counted, examples
from client.pseudonyms import is_pseudonym
from common.data.checks import DROPPED, class_numbers
from common.data.cohort import IntArray
from common.data.csv_table import labels_of
from common.data.table_features import MISSING_WORDS

TRAIN, VALIDATION, TEST = "train", "validation", "test"
PARTS: Final = (TRAIN, VALIDATION, TEST)
_MOST_NAMED: Final = 5
_USE: Final = {TRAIN: "training", VALIDATION: "validation", TEST: "held-out"}


def two_parts(material: Material) -> Iterable[Finding]:
    """Patients with images in two parts of the split."""
    parts = material.needed_parts()
    pairs = np.unique(np.stack([material.patients, np.unique(parts, return_inverse=True)[1]]), axis=1)
    torn = np.flatnonzero(np.bincount(pairs[0]) > 1)
    if not len(torn):
        return []
    patients = counted(len(torn), "patient has", "patients have")
    text = f"{patients} images in two parts of the split: the model would be tested on patients it has seen"
    shown = examples(material.images[np.isin(material.patients, torn)])
    return [Finding(Severity.ERROR, len(torn), text, "put all images of a patient into one part and build the cohort again", shown)]


def labels(material: Material) -> Iterable[Finding]:
    """Cells without a label, and labels outside the study's list."""
    cells, data = _cells(material), material.needed_study().data
    empty = _empty(cells)
    rows = np.flatnonzero(empty)
    if len(rows):
        text = f"{counted(len(rows), 'row has', 'rows have')} no label in column {data.label_column}"
        yield Finding(
            Severity.ERROR, len(rows), text, "give each its label, or leave these rows out and build again", _images(material, rows)
        )
    others = np.flatnonzero(~empty & (_classes(material) == DROPPED))
    if len(others):
        yield _outside(material, cells, others)


def _outside(material: Material, cells: TextArray, rows: IntArray) -> Finding:
    data = material.needed_study().data
    values = np.unique(cells[rows]).tolist()
    named = ", ".join(f'"{one[:40]}"' for one in values[:_MOST_NAMED]) + (", …" if len(values) > _MOST_NAMED else "")
    text = f"{counted(len(rows), 'row has', 'rows have')} a label outside the study's list in column {data.label_column}: {named}"
    if data.other_labels == "drop":
        return Finding(Severity.WARNING, len(rows), text, "the study leaves them out (data.other_labels: drop)", _images(material, rows))
    return Finding(Severity.ERROR, len(rows), text, "correct them, or leave these rows out and build again", _images(material, rows))


def one_class(material: Material) -> Iterable[Finding]:
    """Parts of the split in which every row has one class, or nobody is."""
    parts, classes, names = material.needed_parts(), _classes(material), material.needed_study().data.labels
    for part in (TRAIN, TEST):
        present = classes[(parts == part) & (classes != DROPPED)]
        if not len(present):
            severity = Severity.ERROR if part == TRAIN else Severity.WARNING
            yield Finding(severity, 0, f"there is no {_USE[part]} patient", "add patients, or correct the split")
        elif len(np.unique(present)) == 1:
            text = f"one class only among {counted(len(present), f'{_USE[part]} row')} ({names[present[0]][:40]})"
            why = "the site trains, but alone it learns nothing" if part == TRAIN else "nothing can be measured here"
            yield Finding(Severity.WARNING, len(present), text, f"{why}; add patients of the other classes")


def minimum(material: Material) -> Iterable[Finding]:
    """Fewer patients than the study asks for."""
    parts, wanted = material.needed_parts(), material.needed_study().data.min_patients
    patients = len(np.unique(material.patients[parts == TRAIN]))
    if patients < wanted:
        text = f"{counted(patients, 'training patient')}, the study asks for {wanted}"
        yield Finding(Severity.ERROR, patients, text, "add patients, or take no part in this study")


def ids(material: Material) -> Iterable[Finding]:
    """Patients that are not called by a pseudonym."""
    plain = np.flatnonzero([not is_pseudonym(one) for one in material.manifest.patients])
    if len(plain):
        text = f"{counted(len(plain), 'row names', 'rows name')} the patient by something else than a pseudonym"
        yield Finding(Severity.ERROR, len(plain), text, "build the cohort again", examples(material.images[plain]))


def _cells(material: Material) -> TextArray:
    """The cells of the study's label column. Raises NotMade."""
    column = material.needed_study().data.label_column
    if column not in material.cohort.label_columns:
        raise NotMade(f"the cohort has no label column {column} (data.label_column); it has {', '.join(material.cohort.label_columns)}")
    return np.array(material.manifest.cells[column], dtype=np.str_)


def _empty(cells: TextArray) -> npt.NDArray[np.bool_]:
    return np.isin(np.char.lower(np.char.strip(cells)), list(MISSING_WORDS))


def _classes(material: Material) -> IntArray:
    """The class of each row as the study reads it, int64 [R]; DROPPED for any other label, and for none."""
    cells, data = _cells(material), material.needed_study().data
    filled = ~_empty(cells)
    classes = np.full(len(cells), DROPPED, dtype=np.int64)
    if filled.any():
        classes[filled] = class_numbers(labels_of(cells[filled]), data.model_copy(update={"other_labels": "drop"}))[0]
    return classes


def _images(material: Material, rows: IntArray) -> tuple[int, ...]:
    return examples(material.images[rows])


PATIENT_CHECKS: tuple[tuple[str, Check], ...] = (
    ("pseudonyms", ids),
    ("patients in two parts", two_parts),
    ("labels", labels),
    ("one class only", one_class),
    ("enough patients", minimum),
)
