# SPDX-License-Identifier: Apache-2.0
"""The feature columns of a tabular study: what a value may be, and the public constants that turn it into numbers.

Everything here is public and the same at every site. Centre, scale, range, categories and what stands in for a missing value come from
clinical knowledge, or from a survey with privacy; never from the values of a site, which would tell about its patients unaccounted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from common.study_part import Part, refuse

UNLISTED = "other"
MISSING = "missing"
CATEGORY_FIELDS = ("values", "unlisted")
NUMBER_FIELDS = ("centre", "scale", "limit")


def _as_text(value: Any) -> Any:
    """Categories are text; a whole number may be written without quotes."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(_as_text)]


class TableColumn(Part):
    """A column of a tabular study that the model sees, under its name in the table."""

    kind: Literal["number", "category", "flag"] = Field(
        "number", description="`number`; `category` (one of `values`, a feature for each); or `flag` (no or yes, 0 or 1)."
    )
    centre: float = Field(0.0, description="number: the value that becomes 0. A public constant.")
    scale: float = Field(1.0, gt=0, description="number: the distance from `centre` that becomes 1. A public constant.")
    limit: float = Field(3.0, gt=0, le=100, description="number: what lies further than so many scales from the centre is cut to that.")
    values: tuple[Text, ...] = Field((), description="category: every value that is expected, in quotes.")
    unlisted: Literal["refuse", "own"] = Field(
        "refuse", description="category: a value that is not listed is an error, or (`own`) has a feature of its own."
    )
    missing: Literal["refuse", "indicator", "drop"] = Field(
        "refuse",
        description="A missing value is an error; gets `fill` and a feature that says so (`indicator`); or the row is left out (`drop`).",
    )
    fill: float | None = Field(
        None,
        description="number, flag: stands in for a missing value, in the table's unit; public (default: the centre, a flag's ½).",
    )
    missing_codes: tuple[Text, ...] = Field(
        (), description="Texts that also mean missing, in quotes. Empty, `?`, `NA`, `NaN`, `null` always do, unless listed in `values`."
    )

    @model_validator(mode="after")
    def _fields_fit(self) -> TableColumn:
        problems = []
        if (self.kind == "category") != bool(self.values):
            problems.append("values: lists the categories of a column of kind category, and only there")
        if len(set(self.values)) < len(self.values):
            problems.append("values: a category stands twice; remove one")
        if self.kind != "category":
            problems += self._strange(CATEGORY_FIELDS[1:])
        if self.kind != "number":
            problems += self._strange(NUMBER_FIELDS)
        if self.fill is not None and (self.missing != "indicator" or self.kind == "category"):
            problems.append("fill: belongs to a number or flag with missing: indicator; remove it (a missing category has no category)")
        refuse(problems)
        return self

    def _strange(self, names: tuple[str, ...]) -> list[str]:
        """Fields that were given and that this kind does not have."""
        fields = type(self).model_fields
        return [f"{name}: does nothing for a {self.kind}; remove it" for name in names if getattr(self, name) != fields[name].default]

    def feature_names(self, name: str) -> tuple[str, ...]:
        """What the column `name` becomes, in order: its number, or a slot for each category; then the indicator of a missing value."""
        slots = [f"{name}={value}" for value in self.values] if self.kind == "category" else [name]
        slots += [f"{name}={UNLISTED}"] if self.unlisted == "own" else []
        return (*slots, *([f"{name} {MISSING}"] if self.missing == "indicator" else []))


def feature_names(columns: Mapping[str, TableColumn]) -> tuple[str, ...]:
    """The features of a tabular study in the order in which its model gets them: columns by name, so that the order in a file is free."""
    return tuple(feature for name in sorted(columns) for feature in columns[name].feature_names(name))
