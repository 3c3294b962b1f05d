# SPDX-License-Identifier: Apache-2.0
"""What a check of a cohort finds, and what it may look at.

A check is a function of `Material` that returns its findings, none when all is well, or raises `NotMade` with the reason when it lacks
what it needs. It changes nothing. Examples are numbers of images (rows of images.npy) or of the manifest's rows; no finding names a patient
or a file, so a verdict can be shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from client.cohorts.records import FileRecord
from common.data.cohort import IntArray
from common.data.cohort_file import CohortFile, Manifest
from common.study import Study

MOST_EXAMPLES: Final = 8
TextArray = npt.NDArray[np.str_]


class Severity(StrEnum):
    """ERROR: nobody should train on this. WARNING: somebody has to look."""

    ERROR = "error"
    WARNING = "warning"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with `count` images, patients or cells. `images` and `pairs` are examples, by number of the image."""

    severity: Severity
    count: int
    text: str
    remedy: str
    images: tuple[int, ...] = ()
    pairs: tuple[tuple[int, int], ...] = ()


class NotMade(Exception):
    """A check that cannot be made; the text says why."""


@dataclass(frozen=True)
class Material:
    """A cohort as the checks see it; R rows of the manifest, N images.

    `patients` int64 [R] numbers the patients; `images` int64 [R] is each row's image (without images its own number). `parts` [R] says what
    each row is for: train, validation or test, None when that is not known here. `prints` are `fingerprints` [N], None without images.
    `records` are None when ingest/ was deleted. `study` is the one to check against, if any.
    """

    cohort: CohortFile
    manifest: Manifest
    patients: IntArray
    images: IntArray
    parts: TextArray | None
    prints: npt.NDArray[np.void] | None
    records: tuple[FileRecord, ...] | None
    study: Study | None = None

    def needed_prints(self) -> npt.NDArray[np.void]:
        """The fingerprints. Raises NotMade."""
        if self.prints is None:
            raise NotMade("the cohort is a table without images")
        return self.prints

    def needed_records(self) -> tuple[FileRecord, ...]:
        """The records of the source files. Raises NotMade."""
        if self.records is None:
            raise NotMade("the cohort has no records of its source files (ingest/files.jsonl)")
        return self.records

    def needed_study(self) -> Study:
        """The study. Raises NotMade."""
        if self.study is None:
            raise NotMade("it depends on a study; name one with --study")
        return self.study

    def needed_parts(self) -> TextArray:
        """What each row is for. Raises NotMade."""
        if self.parts is None:
            raise NotMade("the split is made with the site's key; run it at the site, or give --home")
        return self.parts

    def by_image(self, of_row: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Values [N] of images for values [R] of rows. Images without a row have the first row's; `orphans` reports them."""
        count = self.cohort.images.count if self.cohort.images is not None else len(of_row)
        result = np.full(count, of_row[0] if len(of_row) else 0, dtype=of_row.dtype)
        result[self.images] = of_row
        return result


Check = Callable[[Material], Iterable[Finding]]


def examples(numbers: npt.NDArray[Any]) -> tuple[int, ...]:
    """The first few numbers, as plain ones."""
    return tuple(int(one) for one in numbers[:MOST_EXAMPLES])


def counted(count: int, one: str, many: str = "") -> str:
    """`1 image`, `2 images`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
