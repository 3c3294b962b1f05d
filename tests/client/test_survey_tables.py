# SPDX-License-Identifier: Apache-2.0
"""The exact tables of a survey: counted by hand, and one patient more or less changes each by no more than its weight."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.survey_tables import column_problems, exact_tables, whole_units
from common.data.cohort import Cohort, Dataset
from common.survey_plan import WEIGHT, SurveyPlan, survey_plan, survey_study
from tests.support.studies import PRIVATE, small

SURVEY = {
    "images_per_patient": [1, 2, 4],
    "intensity_bins": 4,
    "subgroups": {"sex": ["f", "m"]},
    "features": {"age": {"low": 20, "high": 60, "bins": 4}},
}


def make_plan() -> SurveyPlan:
    plan = survey_plan(survey_study(small(PRIVATE, survey=SURVEY)))
    assert plan is not None
    return plan


PLAN = make_plan()


def dataset(patients: list[int], labels: list[int], greys: list[int], sex: list[str], age: list[float]) -> Dataset:
    """One image of one grey value, 2 x 2, for each entry."""
    images = np.repeat(np.array(greys, dtype=np.uint8), 4).reshape(-1, 1, 2, 2)
    columns = {"sex": np.array(sex, dtype=np.str_), "age": np.array(age)}
    owners, names = np.array(patients, dtype=np.int64), tuple(f"p{number}" for number in range(max(patients, default=0) + 1))
    return Dataset(images, np.array(labels, dtype=np.int64), owners, names, ("normal", "opacity"), columns, None, None, True, "0")


def whole(data: Dataset) -> Cohort:
    return Cohort(data, np.arange(len(data)), np.zeros(len(data), dtype=np.uint8))


def test_a_patient_counts_as_one_however_many_images_there_are() -> None:
    data = dataset([0, 0, 0, 0, 1], [0, 0, 0, 1, 1], [0, 63, 64, 255, 128], ["f", "f", "f", "f", "x"], [30, 30, 30, 30, np.nan])
    found = {name: (table / WEIGHT).tolist() for name, table in exact_tables(whole(data), PLAN).items()}
    assert found == {
        "patients": [2.0],
        "images": [1.0, 0.0, 1.0],
        "classes": [0.75, 1.25],
        "intensity": [0.5, 0.25, 1.0, 0.25],
        "subgroup/sex": [1.0, 0.0, 1.0],
        "feature/age": [0.0, 1.0, 0.0, 0.0, 1.0],
    }


def test_values_are_clamped_to_the_range_and_edges_belong_to_the_bin_above() -> None:
    ages = [-5.0, 20.0, 30.0, 60.0, 61.0, np.inf, -np.inf, np.nan]
    count = len(ages)
    data = dataset(list(range(count)), [0] * count, [0] * count, ["f"] * count, ages)
    assert (exact_tables(whole(data), PLAN)["feature/age"] / WEIGHT).tolist() == [3.0, 1.0, 0.0, 3.0, 1.0]


def test_columns_of_text_and_of_numbers_are_read_as_they_are_written() -> None:
    data = dataset([0, 1, 2, 3], [0] * 4, [0] * 4, ["f"] * 4, [0] * 4)
    data = dataclasses.replace(data, columns={"sex": np.array([1.0, 2.0, 1.0, np.nan]), "age": np.array(["25", "?", "", " 59.5"])})
    plan = survey_plan(survey_study(small(PRIVATE, survey={**SURVEY, "subgroups": {"sex": [1, 2]}})))
    assert plan is not None
    found = exact_tables(whole(data), plan)
    assert (found["subgroup/sex"] / WEIGHT).tolist() == [2.0, 1.0, 1.0]
    assert (found["feature/age"] / WEIGHT).tolist() == [1.0, 0.0, 0.0, 1.0, 2.0]


def test_only_the_cohorts_rows_count_and_nobody_at_all_is_an_empty_table() -> None:
    data = dataset([0, 0, 1], [0, 1, 1], [0, 0, 0], ["f", "f", "m"], [30, 30, 30])
    some = exact_tables(Cohort(data, np.array([1]), np.array([2], dtype=np.uint8)), PLAN)
    assert (some["classes"] / WEIGHT).tolist() == [0.0, 1.0]
    nobody = exact_tables(Cohort(data, np.array([], dtype=np.int64), np.array([], dtype=np.uint8)), PLAN)
    assert {name: table.shape for name, table in nobody.items()} == PLAN.shapes
    assert all(not table.any() for table in nobody.values())


def test_a_column_that_is_not_there_is_named() -> None:
    data = dataclasses.replace(dataset([0], [0], [0], ["f"], [1.0]), columns={"age": np.array([1.0])})
    (problem,) = column_problems(data, PLAN)
    assert "column sex" in problem and "it has: age" in problem


@given(st.lists(st.lists(st.integers(0, 1000), min_size=5, max_size=5).filter(any), min_size=1, max_size=20))
@settings(max_examples=200, deadline=None)
def test_rounded_shares_always_come_to_exactly_one_patient(weights: list[list[int]]) -> None:
    shares = np.array(weights, dtype=np.float64)
    shares /= shares.sum(axis=1, keepdims=True)
    units = whole_units(shares)
    assert (units >= 0).all() and (units.sum(axis=1) == WEIGHT).all()
    assert np.abs(units - shares * WEIGHT).max() < 1


ROWS = st.lists(
    st.tuples(st.integers(0, 5), st.integers(0, 1), st.integers(0, 255), st.sampled_from(["f", "m", "?"]), st.floats(allow_nan=True)),
    min_size=1,
    max_size=24,
)


@given(ROWS, st.integers(0, 5))
@settings(max_examples=150, deadline=None)
def test_one_patient_less_changes_each_table_by_at_most_the_weight(rows: list[tuple[int, int, int, str, float]], leaves: int) -> None:
    """The sensitivity that the noise is for, whatever the patient's images are: L1 exactly `WEIGHT`, and nothing is below zero."""
    columns = [list(column) for column in zip(*rows, strict=True)]
    cohort = whole(dataset(*columns))  # type: ignore[arg-type]
    kept = np.flatnonzero(cohort.dataset.patients != leaves)
    with_all, without = exact_tables(cohort, PLAN), exact_tables(Cohort(cohort.dataset, kept, cohort.split[kept]), PLAN)
    is_there = bool((cohort.dataset.patients == leaves).any())
    for name, table in with_all.items():
        difference = table - without[name]
        assert (difference >= 0).all()
        assert difference.sum() == WEIGHT * is_there


@pytest.mark.parametrize("repeats", [1, 7])
def test_the_same_image_again_changes_nothing_but_the_table_of_images(repeats: int) -> None:
    one = exact_tables(whole(dataset([0], [1], [77], ["m"], [33.0])), PLAN)
    many = exact_tables(whole(dataset([0] * repeats, [1] * repeats, [77] * repeats, ["m"] * repeats, [33.0] * repeats)), PLAN)
    assert all(np.array_equal(one[name], many[name]) for name in one if name != "images")
