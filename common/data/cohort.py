# SPDX-License-Identifier: Apache-2.0
"""A data set on disk, and the part of it that is one site's cohort.

A `Dataset` is a folder with a few plain arrays, written once and opened memory-mapped, so that any number of processes share one
copy. A `Cohort` is a selection of its rows that belongs to one site, with every patient wholly in training, validation or test.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from common.errors import DataError

IntArray = npt.NDArray[np.int64]
ByteArray = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]


class Split(IntEnum):
    """What a patient's images may be used for; decided once for a patient."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2


@dataclass(frozen=True)
class Dataset:
    """Images, or the features of a table, and labels of many patients.

    `images` is uint8 [N, C, H, W] (usually memory-mapped). Of a table it is empty, [N, 0, 0, 0], and `features` is float32 [N, F] in the
    order of `study.Data.feature_names`; the columns as they were (NaN: missing) are then among `columns`. `labels` int64 [N] with class
    numbers 0…, `patients` int64 [N] with patient numbers 0…P-1, `patient_ids` the P ids. `columns` holds further facts for each image
    (age, sex, scanner); `split` the official split if the source has one, uint8 [N] of `Split`. `digest` is the SHA-256 of all of it.
    `remarks` say what was done to the images when they were read, for whoever runs on them.
    """

    images: ByteArray
    labels: IntArray
    patients: IntArray
    patient_ids: tuple[str, ...]
    label_names: tuple[str, ...]
    columns: Mapping[str, npt.NDArray[Any]]
    split: ByteArray | None
    natural_sites: str | None
    synthetic: bool
    digest: str
    remarks: tuple[str, ...] = ()
    features: FloatArray | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Cohort:
    """One site's patients for a study. `rows` int64 [n] are rows of `dataset`; `split` uint8 [n] says what each is for."""

    dataset: Dataset
    rows: IntArray
    split: ByteArray

    def __post_init__(self) -> None:
        if len(self.rows) != len(self.split):
            raise DataError(f"cohort: {len(self.rows)} rows but {len(self.split)} split entries; write the site's folder anew")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the data set, the rows and the split."""
        parts = (self.dataset.digest.encode(), self.rows.tobytes(), self.split.tobytes())
        return hashlib.sha256(b"\0".join(parts)).hexdigest()

    def account(self, split: Split) -> str:
        """Name of the privacy account of the patients in `split`: a digest of their ids, whatever the cohort is called or where it lies."""
        numbers = np.unique(self.dataset.patients[self.rows_in(split)])
        names = "\n".join(sorted(self.dataset.patient_ids[number] for number in numbers))
        return f"{split.name.lower()}-{hashlib.sha256(names.encode()).hexdigest()}"

    def rows_in(self, split: Split) -> IntArray:
        """Rows of the data set that belong to `split`, in ascending order of cohort position."""
        rows: IntArray = self.rows[self.split == split]
        return rows

    def patients_in(self, split: Split) -> list[IntArray]:
        """For each patient of `split`, in ascending patient number: the rows of that patient's images."""
        rows = self.rows_in(split)
        owners = self.dataset.patients[rows]
        order = np.argsort(owners, kind="stable")
        starts = np.flatnonzero(np.diff(owners[order])) + 1
        return np.split(rows[order], starts) if len(rows) else []

    def patient_count(self, split: Split) -> int:
        """Number of patients in `split`. Private: it must never leave a site."""
        return len(np.unique(self.dataset.patients[self.rows_in(split)]))
