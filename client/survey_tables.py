# SPDX-License-Identifier: Apache-2.0
"""The exact tables of a survey at a site, before noise. They never leave as they are (`client.surveying`).

Every row of the data puts a weight of 1 on the cells of a table: one cell for a label or a value, many for the pixels of an image. A
patient's rows are averaged, and the average is rounded to whole units that come to exactly `WEIGHT`. So what one patient adds
depends on nobody else, is never negative, and has the same total for one image as for a hundred.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from common.data.cohort import Cohort, Dataset, IntArray
from common.survey_plan import WEIGHT, SurveyPlan, Table

CountArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]
Values = npt.NDArray[Any]


def exact_tables(cohort: Cohort, plan: SurveyPlan) -> dict[str, CountArray]:
    """Each table by name, int64 [cells] in units of 1/`WEIGHT` patient, over all patients of the cohort, training and held-out."""
    rows = np.unique(cohort.rows)
    _, owners = np.unique(cohort.dataset.patients[rows], return_inverse=True)
    return {table.name: whole_units(_of_patients(table, cohort.dataset, rows, owners)).sum(axis=0) for table in plan.tables}


def column_problems(dataset: Dataset, plan: SurveyPlan) -> list[str]:
    """Columns that the survey asks for and the data does not have."""
    wanted = [table.column for table in plan.tables if table.column]
    there = ", ".join(sorted(dataset.columns)) or "none"
    return [
        f"the survey asks for column {name}, which this cohort does not have (it has: {there}); build the cohort with it, or reject"
        for name in wanted
        if name not in dataset.columns
    ]


def whole_units(shares: FloatArray) -> CountArray:
    """Shares [patients, cells], each row at least 0 with sum 1, as whole numbers with sum `WEIGHT`: the largest remainders go up."""
    scaled = shares * WEIGHT
    units = np.floor(scaled)
    missing = WEIGHT - units.sum(axis=1)
    order = np.argsort(units - scaled, axis=1, kind="stable")
    rank = np.argsort(order, axis=1, kind="stable")
    whole: CountArray = (units + (rank < missing[:, None])).astype(np.int64)
    return whole


def _of_patients(table: Table, dataset: Dataset, rows: IntArray, owners: IntArray) -> FloatArray:
    """Each patient's shares of the cells, [patients, cells]."""
    images = np.bincount(owners)
    if table.kind == "patients":
        return np.ones((len(images), 1))
    if table.kind == "images":
        return _one_hot(np.searchsorted(table.edges, images, side="right") - 1, len(table.cells))
    total = np.zeros((len(images), len(table.cells)))
    np.add.at(total, owners, _of_rows(table, dataset, rows))
    return total / images[:, None]


def _of_rows(table: Table, dataset: Dataset, rows: IntArray) -> FloatArray:
    """Each row's shares of the cells, [rows, cells]."""
    if table.kind == "intensity":
        return _grey_shares(table, dataset, rows)
    if table.kind == "classes":
        cells = dataset.labels[rows]
    elif table.kind == "subgroup":
        cells = _category_cells(dataset.columns[table.column][rows], table.cells[:-1])
    else:
        cells = _number_cells(dataset.columns[table.column][rows], table.edges)
    return _one_hot(cells, len(table.cells))


def _one_hot(cells: IntArray, count: int) -> FloatArray:
    shares = np.zeros((len(cells), count))
    shares[np.arange(len(cells)), cells] = 1
    return shares


def _grey_shares(table: Table, dataset: Dataset, rows: IntArray) -> FloatArray:
    """Share of each image's pixels in each bin of grey values; one image is in memory at a time."""
    cell_of_grey = np.searchsorted(table.edges, np.arange(256), side="right") - 1
    grouped = _one_hot(cell_of_grey, len(table.cells))
    shares = np.zeros((len(rows), len(table.cells)))
    for number, row in enumerate(rows):
        image = dataset.images[row]
        shares[number] = np.bincount(np.ravel(image), minlength=256) @ grouped / image.size
    return shares


def _category_cells(values: Values, categories: Sequence[str]) -> IntArray:
    """The cell of each value; the last one is for what is not listed."""
    number = {name: cell for cell, name in enumerate(categories)}
    found, where = np.unique(values, return_inverse=True)
    cells = np.array([number.get(_as_text(value), len(categories)) for value in found.tolist()], dtype=np.int64)
    return cells[where]


def _number_cells(values: Values, edges: Sequence[float]) -> IntArray:
    """The bin of each value, clamped to the range; the last cell is for what is no number."""
    numbers = _as_numbers(values)
    bins = np.searchsorted(edges[1:-1], np.nan_to_num(numbers, posinf=edges[-1], neginf=edges[0]), side="right")
    return np.where(np.isnan(numbers), len(edges) - 1, bins)


def _as_text(value: object) -> str:
    """A category as it is written in a study: 1.0 is `1`."""
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()


def _as_numbers(values: Values) -> FloatArray:
    """Values as float64; text that is no number is NaN."""
    if values.dtype.kind in "biuf":
        return values.astype(np.float64)
    found, where = np.unique(values.astype(np.str_), return_inverse=True)
    numbers: FloatArray = np.array([_as_number(text) for text in found.tolist()])[where]
    return numbers


def _as_number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
