# SPDX-License-Identifier: Apache-2.0
"""Checks for images that are there twice. Between training and held-out patients they make a measurement too good; between two patients
they say that one person may have two ids, and so two budgets."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from client.cohorts.duplicates import MOST_PAIRS, Near, example_pairs, near_duplicates, same_pixels, torn_groups
from client.cohorts.findings import MOST_EXAMPLES, Check, Finding, Material, Severity, counted
from common.data.cohort import IntArray

_TWO_IDS = "find out whether it is one person with two ids (give the patient one id) or a file that was copied to the wrong patient"


def exact(material: Material) -> Iterable[Finding]:
    """Images with the very same pixels: in two parts of the split, at two patients, with two labels, twice at one patient."""
    prints = material.needed_prints()
    groups = same_pixels(prints["sha256"])
    groups = np.where(prints["low"] == prints["high"], groups.max(initial=0) + 1 + np.arange(len(groups)), groups)  # no copies of nothing
    patients = material.by_image(material.patients)
    across = torn_groups(groups, patients)
    yield from _across_parts(material, groups)
    if across.any():
        count = int(np.count_nonzero(across))
        text = f"{counted(count, 'image is', 'images are')} stored with the very same pixels for different patients"
        yield Finding(Severity.WARNING, count, text, _TWO_IDS, pairs=tuple(example_pairs(groups, patients, MOST_EXAMPLES)))
    yield from _with_two_labels(material, groups)
    yield from _twice_at_one(groups, ~across)


def _across_parts(material: Material, groups: IntArray) -> Iterable[Finding]:
    if material.parts is None:
        return
    parts = material.by_image(material.parts)
    torn = torn_groups(groups, parts)
    if torn.any():
        count = int(np.count_nonzero(torn))
        text = f"{counted(count, 'image is', 'images are')} in two parts of the split with the very same pixels: tested on what was learnt"
        yield Finding(Severity.ERROR, count, text, _TWO_IDS, pairs=tuple(example_pairs(groups, parts, MOST_EXAMPLES)))


def _with_two_labels(material: Material, groups: IntArray) -> Iterable[Finding]:
    for column in material.cohort.label_columns:
        labels = material.by_image(np.array(material.manifest.cells[column], dtype=np.str_))
        torn = torn_groups(groups, labels)
        if torn.any():
            count = int(np.count_nonzero(torn))
            text = f"{counted(count, 'image has', 'images have')} the very same pixels as another one and another {column}"
            yield Finding(
                Severity.ERROR,
                count,
                text,
                "one of the labels is wrong; correct it",
                pairs=tuple(example_pairs(groups, labels, MOST_EXAMPLES)),
            )


def _twice_at_one(groups: IntArray, chosen: npt.NDArray[np.bool_]) -> Iterable[Finding]:
    """Copies at one patient harm nobody: that patient's images are averaged or drawn from."""
    own = groups[chosen]
    copies = len(own) - len(np.unique(own))
    if copies:
        numbers = np.flatnonzero(chosen)
        pairs = example_pairs(own, np.arange(len(own)), MOST_EXAMPLES)
        text = f"{counted(copies, 'image is a copy', 'images are copies')} of another one of the same patient"
        remedy = "harmless, but it weighs more within the patient; take the copies out if they are none of interest"
        yield Finding(Severity.WARNING, copies, text, remedy, pairs=tuple((int(numbers[a]), int(numbers[b])) for a, b in pairs))


def near(material: Material) -> Iterable[Finding]:
    """Images of different patients that are probably copies: scaled, compressed or brightened."""
    prints = material.needed_prints()
    groups = same_pixels(prints["sha256"])
    usable = np.zeros(len(prints), np.bool_)
    usable[_one_of_each(groups, material.by_image(material.patients))] = True
    usable &= prints["low"] != prints["high"]
    found = near_duplicates(prints["appearance"], prints["thumbnail"], material.by_image(material.patients), usable)
    pairs = found.pairs[groups[found.pairs[:, 0]] != groups[found.pairs[:, 1]]]
    across = _in_two_parts(material, pairs)
    yield from _probable(pairs[across], found, "in two parts of the split look", "the model may be tested on what it has seen")
    yield from _probable(pairs[~across], found, "of different patients look", "one person may have two ids")


def _one_of_each(groups: IntArray, patients: IntArray) -> IntArray:
    """One image of each patient in each group of equal ones."""
    first: IntArray = np.unique(np.stack([groups, patients]), axis=1, return_index=True)[1]
    return first


def _in_two_parts(material: Material, pairs: IntArray) -> npt.NDArray[np.bool_]:
    if material.parts is None or not len(pairs):
        return np.zeros(len(pairs), np.bool_)
    parts: npt.NDArray[Any] = material.by_image(material.parts)
    torn: npt.NDArray[np.bool_] = parts[pairs[:, 0]] != parts[pairs[:, 1]]
    return torn


def _probable(pairs: IntArray, found: Near, where: str, why: str) -> Iterable[Finding]:
    if not len(pairs):
        return
    more = f" (or more: the search ended at {MOST_PAIRS:,} pairs)" if found.cut else ""
    text = f"{counted(len(pairs), 'pair of images', 'pairs of images')} {where} almost the same{more}: {why}"
    shown = tuple((int(a), int(b)) for a, b in pairs[:MOST_EXAMPLES])
    yield Finding(Severity.WARNING, len(pairs), text, f"look at them; {_TWO_IDS}", pairs=shown)


DUPLICATE_CHECKS: tuple[tuple[str, Check], ...] = (("exact duplicates", exact), ("near duplicates", near))
