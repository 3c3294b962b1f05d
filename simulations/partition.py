# SPDX-License-Identifier: Apache-2.0
"""How one data set is dealt out to simulated sites. Always by patient: no patient is ever at two sites.

    iid            patients at random, sites of equal size
    dirichlet:A    label skew: each class is spread over the sites by shares from Dirichlet(A); small A is strong skew
    quantity:A     size skew: sites of random size from Dirichlet(A), labels at random
    column:NAME    the real sites: one for each value of a column, such as scanner

A partition depends on data set, number of sites and seed only. Dirichlet label skew as in Hsu et al. 2019 (arXiv 1909.06335), with
a patient's label being the label of most of their images.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import numpy as np

from common.data.cohort import ByteArray, Cohort, Dataset, IntArray
from common.errors import InputError

DEFAULT_SITES = 4
LEAST_PATIENTS = 16
"""Fewest patients that a skewed partition gives a site: after the test split about 12 are left for training."""

_SEED_TAG = 0x5749_5445
_LONGEST_NAME = 63
_MOST_NUMBERS = 50
"""A column with more different numbers than this is a measurement (age), not a site."""

_KINDS = ("iid", "dirichlet:A", "quantity:A", "column:NAME")


@dataclass(frozen=True)
class Partition:
    """One way to make sites. `alpha` belongs to dirichlet and quantity, `column` to column."""

    kind: Literal["iid", "dirichlet", "quantity", "column"]
    alpha: float = 1.0
    column: str = ""

    def __str__(self) -> str:
        """The text that `parse_partition` reads."""
        if self.kind == "column":
            return f"column:{self.column}"
        return "iid" if self.kind == "iid" else f"{self.kind}:{self.alpha:g}"

    def assign(self, dataset: Dataset, sites: int | None, seed: int, least_patients: int = LEAST_PATIENTS) -> list[IntArray]:
        """Rows of each site, int64, ascending. `sites` None means `DEFAULT_SITES`, or as many as the column has values.

        A skewed draw that leaves a site with fewer than `least_patients` is filled up from the largest sites. Raises InputError when
        there are too few patients, the column does not exist or tears a patient, or `sites` is not the number of its values.
        """
        if self.kind == "column":
            groups = self._by_column(dataset, sites)
        else:
            groups = self._drawn(dataset, _site_count(dataset, sites, 1 if self.kind == "iid" else least_patients), seed, least_patients)
        site_of_patient = np.empty(len(dataset.patient_ids), dtype=np.int64)
        for site, patients in enumerate(groups):
            site_of_patient[patients] = site
        site_of_row = site_of_patient[dataset.patients]
        return [np.flatnonzero(site_of_row == site) for site in range(len(groups))]

    def site_names(self, dataset: Dataset, sites: int | None) -> list[str]:
        """Names in the order of `assign`: `site-1`, … or the column's values as slugs. Raises InputError like `assign`."""
        if self.kind != "column":
            return [f"site-{number + 1}" for number in range(DEFAULT_SITES if sites is None else sites)]
        return _slugs([str(value) for value in np.unique(_column(dataset, self.column))], self.column)

    def _drawn(self, dataset: Dataset, sites: int, seed: int, least: int) -> list[IntArray]:
        rng = np.random.default_rng([_SEED_TAG, seed])
        count = len(dataset.patient_ids)
        if self.kind == "iid":
            return np.array_split(rng.permutation(count), sites)
        if self.kind == "quantity":
            sizes = least + _whole(rng.dirichlet(np.full(sites, self.alpha)), count - sites * least)
            return np.split(rng.permutation(count), np.cumsum(sizes)[:-1])
        return _filled_up(_by_label(majority_labels(dataset), sites, self.alpha, rng), least, rng)

    def _by_column(self, dataset: Dataset, sites: int | None) -> list[IntArray]:
        """Patients of each value, in the order of the sorted values."""
        values, of_row = np.unique(_column(dataset, self.column), return_inverse=True)
        if sites is not None and sites != len(values):
            raise InputError(
                f"--sites {sites}: column {self.column!r} has {len(values)} values, and each is a site; leave out --sites, "
                "or add --partition iid"
            )
        pairs = np.unique(np.stack([dataset.patients, of_row]), axis=1)
        torn = len(pairs[0]) - len(np.unique(pairs[0]))
        if torn:
            raise InputError(
                f"--partition column:{self.column}: {torn} times a patient has images with another value, so the patient would be at two "
                "sites; take a column that is the same in all images of a patient"
            )
        return [pairs[0][pairs[1] == value] for value in range(len(values))]


def parse_partition(text: str) -> Partition:
    """Read `iid`, `dirichlet:A`, `quantity:A` or `column:NAME`. Raises InputError with the nearest right form."""
    kind, colon, argument = text.strip().partition(":")
    match kind:
        case "iid" if not colon:
            return Partition("iid")
        case "dirichlet" | "quantity":
            return Partition(kind, alpha=_alpha(text, kind, argument))
        case "column" if argument:
            return Partition("column", column=argument)
    near = get_close_matches(kind, [form.partition(":")[0] for form in _KINDS], n=1, cutoff=0.4)
    form = next((form for form in _KINDS if near and form.startswith(near[0])), None)
    hint = f"did you mean {form}?" if form else "see --help"
    raise InputError(f"--partition {text!r}: not one of {', '.join(_KINDS)}; {hint}")


def default_partition(dataset: Dataset) -> Partition:
    """The natural sites if the data set has them, else iid."""
    return Partition("column", column=dataset.natural_sites) if dataset.natural_sites else Partition("iid")


def cohort_for(dataset: Dataset, rows: IntArray, split: ByteArray) -> Cohort:
    """One site's cohort from its `rows` and the split of the whole data set, uint8 [N]."""
    return Cohort(dataset, rows, split[rows])


def majority_labels(dataset: Dataset) -> IntArray:
    """The label of most of a patient's images, int64 [P]; the smaller number in a tie."""
    counts = np.zeros((len(dataset.patient_ids), len(dataset.label_names)), dtype=np.int64)
    np.add.at(counts, (dataset.patients, dataset.labels), 1)
    return np.asarray(counts.argmax(axis=1), dtype=np.int64)


def _alpha(text: str, kind: str, argument: str) -> float:
    try:
        alpha = float(argument)
    except ValueError:
        alpha = math.nan
    if not (math.isfinite(alpha) and alpha > 0):
        raise InputError(f"--partition {text!r}: {kind} needs a number above 0, such as {kind}:0.3 (small is strong skew)")
    return alpha


def _site_count(dataset: Dataset, sites: int | None, least: int) -> int:
    count = DEFAULT_SITES if sites is None else sites
    patients = len(dataset.patient_ids)
    if count < 1:
        raise InputError(f"--sites {count}: a simulation needs at least one site")
    if patients < count * least:
        raise InputError(
            f"--sites {count}: {patients} patients are too few for {count} sites of at least {least}; ask for {patients // least} or fewer"
        )
    return count


def _whole(shares: np.ndarray[tuple[int, ...], np.dtype[np.float64]], total: int) -> IntArray:
    """Whole numbers that add up to `total` and are nearest to `shares` of it (largest remainder)."""
    exact = shares * total
    sizes = np.floor(exact).astype(np.int64)
    sizes[np.argsort(sizes - exact, kind="stable")[: total - sizes.sum()]] += 1
    return sizes


def _by_label(labels: IntArray, sites: int, alpha: float, rng: np.random.Generator) -> list[IntArray]:
    """Patients of each site, each class dealt out by its own Dirichlet shares."""
    groups: list[list[IntArray]] = [[] for _ in range(sites)]
    for label in np.unique(labels):
        patients = rng.permutation(np.flatnonzero(labels == label))
        sizes = _whole(rng.dirichlet(np.full(sites, alpha)), len(patients))
        for group, part in zip(groups, np.split(patients, np.cumsum(sizes)[:-1]), strict=True):
            group.append(part)
    return [np.concatenate(group) for group in groups]


def _filled_up(groups: list[IntArray], least: int, rng: np.random.Generator) -> list[IntArray]:
    """Move random patients from the largest sites until every site has `least`."""
    groups = [rng.permutation(group) for group in groups]
    for small in range(len(groups)):
        while len(groups[small]) < least:
            large = max(range(len(groups)), key=lambda site: len(groups[site]))
            groups[small] = np.append(groups[small], groups[large][-1])
            groups[large] = groups[large][:-1]
    return groups


def _column(dataset: Dataset, name: str) -> np.ndarray[tuple[int, ...], np.dtype[np.generic]]:
    if name in dataset.columns:
        values = np.asarray(dataset.columns[name])
        _refuse_measurement(name, values)
        return values
    near = get_close_matches(name, list(dataset.columns), n=1)
    hint = f"did you mean column:{near[0]}?" if near else f"the data set has: {', '.join(dataset.columns) or 'no columns'}"
    raise InputError(f"--partition column:{name}: there is no such column; {hint}")


def _refuse_measurement(name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.generic]]) -> None:
    """Raise InputError for a column of so many numbers that they cannot be sites."""
    count = len(np.unique(values)) if values.dtype.kind in "iuf" else 0
    if count > _MOST_NUMBERS:
        raise InputError(
            f"--partition column:{name}: has {count} different numbers, and each would be a site; take a column that names the site "
            "(site numbers: store them as text), or add --partition iid"
        )


def _slugs(values: list[str], column: str) -> list[str]:
    """Small letters, digits and hyphens. Raises InputError when two values become one name or one has no letter at all."""
    names = [re.sub(r"[^a-z0-9]+", "-", value.lower()).strip("-")[:_LONGEST_NAME].strip("-") for value in values]
    if len(set(names)) < len(names) or "" in names:
        raise InputError(
            f"--partition column:{column}: its values give no different site names; rename them to different words of letters and digits"
        )
    return names
