# SPDX-License-Identifier: Apache-2.0
"""Checks of the images themselves: which files did not enter, sizes out of the ordinary, images that show nothing or look inverted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt

from client.cohorts.findings import Check, Finding, Material, NotMade, Severity, counted, examples
from client.cohorts.fingerprints import normalised
from client.cohorts.records import FileRecord
from common.data.cohort import IntArray

MOST_ASPECT: Final = 3.0
MOST_TIMES_MEDIAN: Final = 4.0
MOST_REASONS: Final = 5
LEAST_LIKENESS: Final = 0.3
"""Half of the images have to correlate that much with the mean image before one can be called inverted."""
INVERTED_LIKENESS: Final = -0.4


def unreadable(material: Material) -> Iterable[Finding]:
    """Source files that did not enter the cohort, by reason."""
    refused = [one for one in material.needed_records() if one.refused]
    if not refused:
        return []
    reasons = Counter(str(one.problem).partition(";")[0].strip() for one in refused)
    named = "; ".join(f"{count:,} x {reason}" for reason, count in reasons.most_common(MOST_REASONS))
    more = len(reasons) - MOST_REASONS
    text = f"{counted(len(refused), 'source file')} did not enter: {named}{f'; and {more} other reasons' if more > 0 else ''}"
    return [Finding(Severity.WARNING, len(refused), text, "each is named with its remedy in ingest/refused.csv")]


def orphans(material: Material) -> Iterable[Finding]:
    """Stored images that no row of the manifest names."""
    if material.cohort.images is None:
        return []
    count = material.cohort.images.count
    lost = np.setdiff1d(np.arange(count), material.images)
    if not len(lost):
        return []
    text = f"{counted(len(lost), 'stored image belongs', 'stored images belong')} to no row of the manifest"
    return [Finding(Severity.ERROR, len(lost), text, "build the cohort again", examples(lost))]


def sizes(material: Material) -> Iterable[Finding]:
    """Images whose size in the file is far from the others', or that are long and narrow."""
    measured = [one for one in material.needed_records() if one.image is not None and one.height and one.width]
    if not measured:
        raise NotMade("the sizes of the source images are not known")
    sides = np.array([(one.height, one.width) for one in measured], dtype=np.float64)  # [n, 2]
    numbers = np.array([one.image for one in measured])
    longest, shortest = sides.max(axis=1), sides.min(axis=1)
    median = float(np.median(sides))
    odd = (longest > MOST_TIMES_MEDIAN * median) | (shortest < median / MOST_TIMES_MEDIAN)
    narrow = longest > MOST_ASPECT * shortest
    return [*_odd_sizes(numbers[odd], median), *_narrow(numbers[narrow]), *_small(material, numbers, longest)]


def _odd_sizes(numbers: IntArray, median: float) -> Iterable[Finding]:
    if len(numbers):
        images = counted(len(numbers), "image is", "images are")
        text = f"{images} over {MOST_TIMES_MEDIAN:g} times larger or smaller than the usual {median:.0f} pixels"
        yield Finding(Severity.WARNING, len(numbers), text, "look whether they are scouts, icons or scans of paper", examples(numbers))


def _narrow(numbers: IntArray) -> Iterable[Finding]:
    if len(numbers):
        images = counted(len(numbers), "image is", "images are")
        text = f"{images} more than {MOST_ASPECT:g} times as long as wide; most of the stored square is padding"
        yield Finding(
            Severity.WARNING, len(numbers), text, "look whether they are what the study wants; crop or leave them out", examples(numbers)
        )


def _small(material: Material, numbers: IntArray, longest: npt.NDArray[np.float64]) -> Iterable[Finding]:
    wanted = 0 if material.study is None else material.study.data.image_size
    small = numbers[longest < wanted]
    if len(small):
        text = f"{counted(len(small), 'image is', 'images are')} smaller than the study's {wanted} pixels and would be enlarged"
        yield Finding(Severity.WARNING, len(small), text, "use larger originals if there are any", examples(small))


def constant(material: Material) -> Iterable[Finding]:
    """Images of one value: they show nothing, and no study takes them."""
    prints = material.needed_prints()
    flat = prints["low"] == prints["high"]
    for one in material.records or ():
        if one.image is not None and one.constant and one.image < len(flat):
            flat[one.image] = True
    numbers = np.flatnonzero(flat)
    if not len(numbers):
        return []
    text = f"{counted(len(numbers), 'image has', 'images have')} one value only and nothing to show; a study refuses the cohort for that"
    return [Finding(Severity.ERROR, len(numbers), text, "take these files out and build the cohort again", examples(numbers))]


def inverted(material: Material) -> Iterable[Finding]:
    """Images that look like the negative of the others."""
    prints = material.needed_prints()
    vectors = normalised(prints["thumbnail"])
    middle = vectors.mean(axis=0)
    length = float(np.linalg.norm(middle))
    likeness = vectors @ middle / length if length > 0 else np.zeros(len(vectors))
    if not len(likeness) or np.median(likeness) < LEAST_LIKENESS:
        raise NotMade("the images are too different from each other for one to be seen as a negative")
    numbers = np.flatnonzero(likeness < INVERTED_LIKENESS)
    if not len(numbers):
        return []
    turned = _turned_around(material.records or (), set(numbers.tolist()))
    text = f"{counted(len(numbers), 'image looks', 'images look')} like the negative of the others{turned}"
    remedy = "look at them; if they are, the files' photometric interpretation is wrong: correct it at the source and build again"
    return [Finding(Severity.WARNING, len(numbers), text, remedy, examples(numbers[np.argsort(likeness[numbers], kind="stable")]))]


def _turned_around(records: Iterable[FileRecord], numbers: set[int]) -> str:
    """How many of them were turned around on reading, because the file said so."""
    turned = sum(1 for one in records if one.image in numbers and one.inverted)
    return f" ({turned} of them were turned around on reading, as their header asks)" if turned else ""


IMAGE_CHECKS: tuple[tuple[str, Check], ...] = (
    ("unreadable files", unreadable),
    ("images without a row", orphans),
    ("extreme sizes", sizes),
    ("constant images", constant),
    ("inverted images", inverted),
)
