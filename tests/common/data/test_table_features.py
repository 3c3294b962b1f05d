# SPDX-License-Identifier: Apache-2.0
"""Features of a table: values by hand, missing ones, and messages that name column, rows and remedy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common.data.table_features import features_of, reference_features
from common.errors import DataError
from common.study import Data
from tests.support.tables import COLUMNS, table_data


def data(**columns: Any) -> Data:
    return Data.model_validate(table_data(columns=columns or COLUMNS))


def features(columns: dict[str, list[Any]], **settings: Any) -> list[list[float]]:
    return features_of({name: np.array(values) for name, values in columns.items()}, data(**settings)).tolist()


def problems(columns: dict[str, list[Any]], **settings: Any) -> str:
    with pytest.raises(DataError) as caught:
        features(columns, **settings)
    return "\n".join(caught.value.problems)


def test_numbers_flags_and_categories_by_hand() -> None:
    table = {"age": ["60", " 45.0", "90", "1e1"], "sex": ["1", "0.0", "YES", "no"], "ward": ["a", "b ", "c", "a"], "note": ["?"] * 4}
    assert features(table) == [
        [1.0, 0.5, 1, 0, 0],
        [-0.5, -0.5, 0, 1, 0],
        [2.0, 0.5, 0, 0, 1],  # (90 - 50) / 10 is 4, cut to 2
        [-2.0, -0.5, 1, 0, 0],
    ]
    assert features_of({name: np.array(values) for name, values in table.items()}, data()).dtype == np.float32


def test_a_missing_value_is_a_constant_of_the_study_and_an_indicator() -> None:
    table = {"age": ["60", "?", ""], "sex": ["NA", "1", "0"], "ward": ["nan", "a", "b"]}
    settings = {name: {**settings, "missing": "indicator"} for name, settings in COLUMNS.items()}
    assert features(table, **settings) == [
        [1, 0, 0, 1, 0, 0, 0, 1],
        [0, 1, 0.5, 0, 1, 0, 0, 0],
        [0, 1, -0.5, 0, 0, 1, 0, 0],
    ]
    settings["age"]["fill"], settings["sex"]["fill"] = 70, 1
    assert [row[0] for row in features(table, **settings)] == [1, 2, 2]
    assert [row[2] for row in features(table, **settings)] == [0.5, 0.5, -0.5]


def test_other_rows_never_change_a_row() -> None:
    """Nothing is learned from the data: a mean, a range or the set of categories would tell about other patients."""
    many = {"age": ["60", "45", "90"], "sex": ["1", "0", "1"], "ward": ["a", "b", "c"]}
    assert [features({name: [values[row]] for name, values in many.items()})[0] for row in range(3)] == features(many)


def test_a_row_with_a_missing_value_is_all_nan_where_the_study_says_drop() -> None:
    settings = {**COLUMNS, "age": {**COLUMNS["age"], "missing": "drop"}}
    found = np.array(features({"age": ["60", "?"], "sex": ["1", "0"], "ward": ["a", "b"]}, **settings))
    assert np.isnan(found).all(axis=1).tolist() == [False, True]


def test_numbers_from_another_reader_are_read_alike() -> None:
    """A Parquet file or a cohort has typed columns with NaN where text files have `?`."""
    settings = {"age": {**COLUMNS["age"], "missing": "indicator"}, "sex": COLUMNS["sex"], "ward": {"kind": "category", "values": [1, 2]}}
    typed = {"age": np.array([60.0, np.nan]), "sex": np.array([True, False]), "ward": np.array([1.0, 2.0])}
    text = {"age": ["60", "?"], "sex": ["1", "0"], "ward": ["1", "2.0"]}
    assert features_of(typed, data(**settings)).tolist() == features(text, **settings)


def test_a_code_may_mean_missing_and_a_listed_word_never_does() -> None:
    settings = {"chol": {"centre": 200, "scale": 100, "missing": "indicator", "missing_codes": [0, "-9"]}}
    assert features({"chol": ["0", "300", "0.0", "-9"]}, **settings) == [[0, 1], [1, 0], [0, 1], [0, 1]]
    assert features({"grade": ["none", "high"]}, grade={"kind": "category", "values": ["none", "high"]}) == [[1, 0], [0, 1]]


def test_an_unlisted_category_has_its_own_feature_or_is_refused() -> None:
    settings = {"kind": "category", "values": ["a"]}
    assert features({"ward": ["a", "z"]}, ward={**settings, "unlisted": "own"}) == [[1, 0], [0, 1]]
    assert "column 'ward': 1 values (row 1) of which each is not in the study's list: 'z'" in problems({"ward": ["a", "z"]}, ward=settings)


def test_every_problem_of_every_column_is_said() -> None:
    found = problems({"age": ["60", "12,5", "1_0", "inf"], "ward": ["a", "", "x", "b"]})
    assert "no column 'sex' (data.columns); the table has: age, ward" in found
    assert (
        "column 'age': 3 values (rows 1, 2, 3) of which each is no number: '12,5', '1_0', 'inf'; write numbers with a decimal point"
        in found
    )
    assert "column 'ward': 1 values are missing (row 1); say data.columns.ward.missing: indicator" in found
    assert "'x'; add it to data.columns.ward.values" in found
    assert "is neither no nor yes" in problems({"sex": ["2"]}, sex={"kind": "flag"})


def test_reference_rows_are_public_and_like_those_of_the_study() -> None:
    settings = {**COLUMNS, "age": {**COLUMNS["age"], "missing": "indicator"}}
    made = reference_features(data(**settings), 500)
    assert made.shape == (500, 6) and made.dtype == np.float32
    assert np.array_equal(made, reference_features(data(**settings), 500))
    assert np.abs(made[:, 0]).max() == 2 and abs(made[:, 0].mean()) < 0.2 and not made[:, 1].any()
    assert set(made[:, 2]) == {-0.5, 0.5} and (made[:, 3:].sum(axis=1) == 1).all()
