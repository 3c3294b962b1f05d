# SPDX-License-Identifier: Apache-2.0
"""What a study asks its sites about their patients before anybody trains (`wardround-server survey`).

Bins, categories and ranges are public and stand in the study. Everything that is released is a table of counts of patients with noise;
means and quantiles are computed from such tables afterwards. What one survey costs, and why: docs/survey.md.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from common.study_part import Part, refuse

MOST_TABLES = 64
MOST_CELLS = 256
Category = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, int) and not isinstance(value, bool) else value)]


class SurveyFeature(Part):
    """The histogram of a column of numbers: equal bins over a public range, and one cell for missing values."""

    low: float = Field(description="Lower end of the range; smaller values count as this one. A public constant.")
    high: float = Field(description="Upper end of the range; larger values count as this one. A public constant.")
    bins: int = Field(16, ge=2, le=64, description="Bins of equal width.")

    @model_validator(mode="after")
    def _is_a_range(self) -> SurveyFeature:
        if not self.low < self.high:
            raise ValueError(f"high: is {self.high:g}, not above low {self.low:g}; write the range from low to high")
        return self


class Survey(Part):
    """Statistics with privacy that the sites may be asked for before anyone trains. Each patient has total weight 1 in each table."""

    epsilon: float = Field(
        0.5, ge=0.01, le=10, description="ε of one survey, divided evenly by all of its tables; all patients pay it, training and held-out."
    )
    mechanism: Literal["discrete-laplace", "gaussian"] = Field(
        "discrete-laplace", description="Noise on each count: `discrete-laplace` (δ = 0), or `gaussian`, which is less for many tables."
    )
    min_patients: int | None = Field(
        None, ge=2, description="Held against each site's noisy number of patients (default: data.min_patients). Nobody is refused by it."
    )
    images_per_patient: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 2, 3, 5, 9),
        max_length=MOST_CELLS,
        description="Patients by images: the smallest number of each bin; [] for no such table.",
    )
    classes: bool = Field(True, description="Table of patients by label.")
    intensity_bins: int = Field(
        16, ge=0, le=64, description="Table of grey values 0 to 255 in so many equal bins; 0 for none. A study of kind tabular has none."
    )
    subgroups: dict[str, tuple[Category, ...]] = Field(
        default_factory=dict,
        max_length=MOST_TABLES,
        description="A table for each of these columns of the cohort (sex, age band, scanner): its public categories.",
    )
    features: dict[str, SurveyFeature] = Field(
        default_factory=dict, max_length=MOST_TABLES, description="A table for each of these columns of numbers: range and bins."
    )

    @model_validator(mode="after")
    def _tables_fit(self) -> Survey:
        problems = []
        if any(b <= a for a, b in zip(self.images_per_patient, self.images_per_patient[1:], strict=False)):
            problems.append("images_per_patient: each bin has to begin above the one before; write them in ascending order")
        if self.images_per_patient and self.images_per_patient[0] != 1:
            problems.append("images_per_patient: the first bin begins at 1; a patient has at least one image")
        for name, categories in self.subgroups.items():
            if not categories or len(set(categories)) < len(categories) or len(categories) > MOST_CELLS:
                problems.append(f"subgroups.{name}: needs 1 to {MOST_CELLS} different categories")
        both = sorted(self.subgroups.keys() & self.features.keys())
        problems += [f"features.{name}: stands among subgroups too; keep one of the two" for name in both]
        if len(self.subgroups) + len(self.features) > MOST_TABLES:
            problems.append(f"subgroups, features: more than {MOST_TABLES} tables together; each takes its share of ε, so ask for fewer")
        refuse(problems)
        return self
