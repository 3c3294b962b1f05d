# SPDX-License-Identifier: Apache-2.0
"""What noisy tables say, and how surely. Uses nothing but released counts and the public plan.

A table is the true one plus independent noise of one known standard deviation on each cell. Counts below zero stay as they were measured:
cutting them would add patients to empty cells. Every standard error here is that of the noise alone, by the delta method; the patients of
a site are all that there are, so there is no sampling error.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from common.survey_plan import WEIGHT, Table

FloatArray = npt.NDArray[np.float64]
SURE = 2.0
"""So many standard errors make a difference one that is there."""
LARGEST_SHARE_ERROR = 0.25
"""Where the number of patients is less sure than this (relative), shares are not measurable."""


@dataclass(frozen=True)
class Figure:
    """A number and its standard error."""

    value: float
    error: float


@dataclass(frozen=True)
class NoisyTable:
    """One table of one site, or the sum of several: `counts` in patients, noise of standard deviation `error` on each."""

    table: Table
    counts: FloatArray
    error: float

    @classmethod
    def of(cls, table: Table, units: Sequence[int], error: float) -> NoisyTable:
        """From what a site has sent."""
        return cls(table, np.array(units, dtype=np.float64) / WEIGHT, error)

    @classmethod
    def sum_of(cls, tables: Sequence[NoisyTable]) -> NoisyTable:
        """Several sites together; at least one."""
        counts: FloatArray = np.sum([one.counts for one in tables], axis=0)
        return cls(tables[0].table, counts, math.sqrt(sum(one.error**2 for one in tables)))

    @property
    def total(self) -> Figure:
        """All cells together: the number of patients, as this table has it."""
        return Figure(float(self.counts.sum()), self.error * math.sqrt(len(self.counts)))

    @property
    def is_measurable(self) -> bool:
        """Whether shares can be told."""
        return self.total.value > 0 and self.total.error <= LARGEST_SHARE_ERROR * self.total.value

    @cached_property
    def shares(self) -> FloatArray:
        """Each cell over all of them. Only where the table is measurable."""
        return self.counts / self.total.value

    @cached_property
    def share_errors(self) -> FloatArray:
        """d share_i / d count_j is (1 if i is j else 0, minus share_i) / total."""
        others = len(self.counts) - 1
        errors: FloatArray = self.error / self.total.value * np.sqrt((1 - self.shares) ** 2 + others * self.shares**2)
        return errors


@dataclass(frozen=True)
class Distance:
    """Total variation distance of two sites' shares, 0 (the same) to 1 (nothing in common), measured with the noise in it.

    `by_noise` is what two sites that are alike would show on average, `largest_by_noise` about the most.
    """

    value: float
    by_noise: float
    largest_by_noise: float

    @property
    def is_sure(self) -> bool:
        """Whether the sites differ by more than the noise."""
        return self.value > self.largest_by_noise


def distance(one: NoisyTable, other: NoisyTable) -> Distance | None:
    """Half the sum of |share - share|; None where one of the tables is not measurable.

    Without a difference each term is the absolute value of a normal number of variance v: mean √(2v/π), variance v (1 - 2/π).
    """
    if not (one.is_measurable and other.is_measurable):
        return None
    variance = one.share_errors**2 + other.share_errors**2
    by_noise = float(np.sqrt(2 * variance / math.pi).sum()) / 2
    spread = math.sqrt(float(variance.sum()) * (1 - 2 / math.pi)) / 2
    return Distance(float(np.abs(one.shares - other.shares).sum()) / 2, by_noise, by_noise + SURE * spread)


@dataclass(frozen=True)
class Numbers:
    """What the histogram of a column of numbers says; None: not measurable. `missing`: share of patients without a value."""

    mean: Figure | None
    deviation: float | None
    quantiles: tuple[tuple[float, float, float] | None, ...]
    missing: Figure | None


QUANTILES = (0.25, 0.5, 0.75)


def numbers(table: NoisyTable) -> Numbers:
    """Mean, standard deviation and quartiles, each quartile with the range of about two standard errors. Bins count at their middle."""
    values = NoisyTable(table.table, table.counts[:-1], table.error)
    missing = Figure(float(table.shares[-1]), float(table.share_errors[-1])) if table.is_measurable else None
    if not values.is_measurable:
        return Numbers(None, None, (None,) * len(QUANTILES), missing)
    edges = np.array(table.table.edges)
    middles = (edges[:-1] + edges[1:]) / 2
    mean = float(values.shares @ middles)
    variance = float(values.shares @ (middles - mean) ** 2)
    error = values.error / values.total.value * float(np.sqrt(((middles - mean) ** 2).sum()))
    found = tuple(_quantile(values, edges, share) for share in QUANTILES)
    return Numbers(Figure(mean, error), math.sqrt(variance) if variance > 0 else None, found, missing)


def _quantile(values: NoisyTable, edges: FloatArray, share: float) -> tuple[float, float, float]:
    """Where the running sum crosses `share` of the total, and where it crosses two standard errors below and above that."""
    total, bins = values.total.value, len(values.counts)
    reached = np.concatenate([[0.0], np.maximum.accumulate(np.maximum(np.cumsum(values.counts), 0))])
    below = int(np.clip(np.searchsorted(reached, share * total), 1, bins))
    error = values.error * math.sqrt(below * (1 - share) ** 2 + (bins - below) * share**2)
    at, low, high = (_crossing(reached, edges, share * total + shift * error) for shift in (0, -SURE, SURE))
    return at, low, high


def _crossing(reached: FloatArray, edges: FloatArray, target: float) -> float:
    """Where the running sum, straight within a bin, first reaches `target`."""
    right = int(np.searchsorted(reached, target))
    if right == 0:
        return float(edges[0])
    if right >= len(reached):
        return float(edges[-1])
    below, above = reached[right - 1], reached[right]
    part = (target - below) / (above - below)
    return float(edges[right - 1] + part * (edges[right] - edges[right - 1]))
