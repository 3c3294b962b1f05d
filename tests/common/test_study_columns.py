# SPDX-License-Identifier: Apache-2.0
"""Columns of a tabular study: which features they become, and what of them does not fit together."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from common.errors import StudyError
from common.study import Study
from common.study_columns import TableColumn
from common.study_file import parse_study
from tests.support.tables import COLUMNS, table_data, tabular_study


def refusal(data: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(ValidationError) as caught:
        Study.model_validate({"name": "a", "privacy": "none", "model": {"name": "logistic"}, "data": data, **changes})
    return str(caught.value)


def test_features_are_named_in_the_order_of_the_columns_names() -> None:
    columns = {
        "b": {"centre": 3, "missing": "indicator"},
        "a": {"kind": "category", "values": [2, "1.0", "x"], "unlisted": "own", "missing": "indicator"},
        "c": {"kind": "flag"},
    }
    named = ("a=2", "a=1.0", "a=x", "a=other", "a missing", "b", "b missing", "c")
    assert tabular_study(columns=columns).data.feature_names == named
    assert tabular_study(columns=dict(reversed(columns.items()))).data.feature_names == named
    assert Study.model_validate({"name": "a", "privacy": "none"}).data.feature_names == ()


def test_the_order_of_columns_does_not_change_the_study_and_each_constant_does() -> None:
    study = tabular_study()
    assert tabular_study(columns=dict(reversed(COLUMNS.items()))).id == study.id
    assert Study.from_canonical_json(study.canonical_json) == study
    for key, value in (("centre", 51), ("scale", 11), ("limit", 3), ("missing", "drop")):
        assert study.with_changes({f"data.columns.age.{key}": value}).id != study.id


def test_new_fields_are_not_in_the_canonical_json_of_a_study_of_images() -> None:
    content = json.loads(Study.model_validate({"name": "a", "privacy": "none"}).canonical_json)
    assert not {"kind", "columns", "column_names", "split_column", "separator", "label_groups", "label_column"} & set(content["data"])
    assert "hidden_units" not in content["model"]


@pytest.mark.parametrize(("labels", "task"), [(["no", "yes"], "binary"), (["no", "mild", "severe"], "multiclass"), (None, "binary")])
def test_classification_is_the_task_that_fits_the_labels(labels: list[str] | None, task: str) -> None:
    data = {"labels": labels} if labels else {}
    study = Study.model_validate({"name": "a", "privacy": "none", "task": "classification", "data": data})
    assert study.task == task
    assert study.id == Study.model_validate({"name": "a", "privacy": "none", "task": task, "data": data}).id
    text = "name: a\nprivacy: none\ntask: classification\n" + (f"data:\n  labels: [{', '.join(labels)}]\n" if labels else "")
    assert parse_study(text, "a.yaml") == study


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ({"kind": "category"}, "values: lists the categories"),
        ({"kind": "number", "values": ["a"]}, "values: lists the categories"),
        ({"kind": "category", "values": ["a", "a"]}, "stands twice"),
        ({"kind": "flag", "scale": 2}, "scale: does nothing for a flag"),
        ({"kind": "category", "values": ["a"], "centre": 1, "limit": 2}, "limit: does nothing for a category"),
        ({"kind": "number", "unlisted": "own"}, "unlisted: does nothing for a number"),
        ({"fill": 3}, "fill: belongs to a number or flag with missing: indicator"),
        ({"kind": "category", "values": ["a"], "missing": "indicator", "fill": 3}, "fill: belongs to a number or flag"),
        ({"scale": 0}, "greater than 0"),
        ({"centre": float("nan")}, "finite"),
    ],
)
def test_a_column_that_does_not_fit_together(column: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        TableColumn.model_validate(column)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"source": "npz"}, "kind: a table is read by source csv or cohort"),
        ({"kind": "image", "columns": {}}, "kind: source csv reads tables"),
        ({"columns": {}}, "columns: name the columns"),
        ({"source": "cohort", "split_column": "split"}, "belong to source csv"),
        ({"column_names": ["a", "a"]}, "column_names: a name stands twice"),
        ({"label_column": "age"}, "age is label_column, which the model must not see"),
        ({"patient_key": "sex"}, "sex is patient_key"),
        ({"split_column": "ward"}, "ward is split_column"),
        ({"label_groups": [[0]]}, "needs 2 lists of numbers"),
        ({"label_groups": [[0], [0, 1]]}, "each number once"),
        ({"label_groups": [[0], [1]], "label_values": [0, 1]}, "takes the place of label_values"),
    ],
)
def test_a_table_that_does_not_fit_together(changes: dict[str, Any], words: str) -> None:
    assert words in refusal(table_data(**changes))


def test_images_and_tables_have_models_of_their_own() -> None:
    assert "logistic does not take data of kind image; take cnn or" in refusal({})
    assert "cnn does not take data of kind tabular; take mlp or logistic" in refusal(table_data(), model={"name": "cnn"})
    assert "a table has none" in refusal(table_data(), training={"augmentation": {"flip": True}})
    assert "mlp has no pretrained weights" in refusal(
        table_data(), model={"name": "mlp", "pretrained": {"path": "w.safetensors", "sha256": "0" * 64}}
    )


def test_what_is_wrong_with_a_column_is_said_at_its_line_with_its_words() -> None:
    text = """name: bad
privacy: none
model: {name: logistic}
data:
  source: csv
  kind: tabular
  columns:
    age: {kind: numbr, centr: 3}
    sex: {kind: flag, scale: 3}
    x: {scale: -1, centre: abc}
"""
    with pytest.raises(StudyError) as caught:
        parse_study(text, "bad.yaml")
    found = "\n".join(caught.value.problems)
    assert "bad.yaml:8: data.columns.age.centr: unknown key; did you mean centre?" in found
    assert "bad.yaml:8: data.columns.age.kind: must be `number` or `category` or `flag`" in found
    assert "bad.yaml:9: data.columns.sex.scale: does nothing for a flag; remove it" in found
    assert "bad.yaml:10: data.columns.x.scale: must be a number, above 0" in found
    assert "bad.yaml:10: data.columns.x.centre: must be a number" in found
