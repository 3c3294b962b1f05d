# SPDX-License-Identifier: Apache-2.0
"""The part of a study that says what its data are: images or tables, their source, labels and columns. Nothing says where they lie."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from common.study_columns import TableColumn, feature_names
from common.study_part import Part
from common.study_part import refuse as _refuse

MOST_HELD_OUT = 0.9


class Phantom(Part):
    """The synthetic chest radiographs that are generated when no real data is given."""

    patients: int = Field(480, ge=16, description="Patients to generate, over all scanners.")
    scanners: int = Field(4, ge=1, le=1000, description="Different acquisitions; each is a natural site.")


class Data(Part):
    """What the images are, not where they lie: a site knows its own path."""

    source: Literal["phantom", "npz", "medmnist", "folder", "cohort", "csv"] = Field(
        "phantom",
        description="Reader of the data: the built-in phantom, any npz, the MedMNIST layout, one folder per class, a cohort that "
        "`wardround-client cohort build` made, or tables in CSV files.",
    )
    kind: Literal["image", "tabular"] = Field("image", description="What a row of the data is: an image, or a line of a table.")
    image_size: int = Field(
        32, ge=16, le=1024, description="Height and width in pixels that the model sees; larger images are averaged down."
    )
    channels: Literal[1, 3] = Field(1, description="1 for grey images, 3 for colour.")
    labels: tuple[str, ...] = Field(("normal", "opacity"), min_length=2, description="Names of the classes, in the order of their numbers.")
    label_values: tuple[int, ...] | None = Field(None, description="The numbers in the file that mean each class (default: 0, 1, …).")
    other_labels: Literal["refuse", "drop"] = Field("refuse", description="What to do with an image whose label is not in the list.")
    image_key: str = Field("images", description="npz: name of the array of images.")
    label_key: str = Field("labels", description="npz: name of the array of labels.")
    patient_key: str = Field("patient_id", description="npz: name of the array of patient ids.")
    label_column: str = Field("label", max_length=200, description="cohort, csv: name of the column that holds the label.")
    label_groups: tuple[tuple[int, ...], ...] | None = Field(
        None, description="In place of label_values where several numbers mean one class: a list of numbers for each of labels."
    )
    columns: dict[str, TableColumn] = Field(
        default_factory=dict, max_length=1000, description="tabular: the columns that the model sees, by name. Needs kind: tabular."
    )
    column_names: tuple[str, ...] = Field((), description="csv: names of the columns of a file that has no line of names, in order.")
    split_column: str | None = Field(
        None,
        max_length=200,
        description="csv: column of an official split (train, validation, test); without it patients are split by keyed hash.",
    )
    separator: Literal["comma", "semicolon", "tab"] = Field("comma", description="csv: what stands between two values.")
    one_image_one_patient: bool = Field(
        False, description="Declares that every image is a patient of its own. Say so only when it is true: privacy is counted by it."
    )
    test_fraction: float = Field(0.2, gt=0, lt=0.9, description="Share of the patients held out for the test, by keyed hash.")
    validation_fraction: float = Field(0.0, ge=0, lt=0.5, description="Share of the patients held out for validation, by keyed hash.")
    min_patients: int = Field(
        8, ge=2, description="Fewest patients with which a site takes part; a hospital answers by its public nominal size."
    )
    phantom: Phantom = Field(default_factory=Phantom, description="Settings of the synthetic images (source: phantom).")

    @model_validator(mode="after")
    def _fields_agree(self) -> Data:
        problems = []
        count, values = len(self.labels), self.label_values
        if len(set(self.labels)) != count:
            problems.append("labels: a name stands twice; give each class a name of its own")
        if values is not None and not len(set(values)) == len(values) == count:
            problems.append(f"label_values: needs {count} different numbers, one for each of labels")
        problems += self._group_problems() + self._table_problems()
        held_out = self.test_fraction + self.validation_fraction
        if held_out > MOST_HELD_OUT + 1e-9:
            problems.append(
                f"validation_fraction: with test_fraction it holds out {held_out:.2f} of the patients, so too few are left for training; "
                f"lower them to a sum of at most {MOST_HELD_OUT:g}"
            )
        _refuse(problems)
        return self

    def _group_problems(self) -> list[str]:
        """What is wrong with the groups of label numbers."""
        groups = self.label_groups
        if groups is None:
            return []
        problems = [] if self.label_values is None else ["label_groups: takes the place of label_values; remove one of the two"]
        numbers = [number for group in groups for number in group]
        if len(groups) != len(self.labels) or not all(groups) or len(set(numbers)) < len(numbers):
            problems.append(f"label_groups: needs {len(self.labels)} lists of numbers, one for each of labels, and each number once")
        return problems

    def _table_problems(self) -> list[str]:
        """What does not fit together in the fields of a table."""
        tabular, problems = self.kind == "tabular", []
        if tabular and self.source not in ("csv", "cohort"):
            problems.append(f"kind: a table is read by source csv or cohort, not {self.source}; change one of the two")
        if not tabular and self.source == "csv":
            problems.append("kind: source csv reads tables; write kind: tabular")
        if tabular != bool(self.columns):
            problems.append("columns: name the columns of a study of kind tabular, and only there")
        if self.source != "csv" and (self.column_names or self.split_column or self.separator != "comma"):
            problems.append("column_names, split_column, separator: belong to source csv; remove them")
        if len(set(self.column_names)) < len(self.column_names):
            problems.append("column_names: a name stands twice; give each column a name of its own")
        special = {self.label_column: "label_column", self.patient_key: "patient_key", self.split_column: "split_column"}
        problems += [
            f"columns: {name} is {use}, which the model must not see; remove it" for name, use in special.items() if name in self.columns
        ]
        return problems

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The features that the model of a tabular study gets, in order; none for images."""
        return feature_names(self.columns)
