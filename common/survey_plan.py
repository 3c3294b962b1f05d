# SPDX-License-Identifier: Apache-2.0
"""What a survey releases: tables of public shape, the noise on them, and what it costs. The same at every site and at the server.

A table is a histogram over a site's patients, int64 in units of 1/`WEIGHT` patient. Each patient adds whole units that are at least 0 and
come to exactly `WEIGHT`, whatever their images are. So adding or removing a patient changes a table by `WEIGHT` in L1, and by at most
that in L2. ε is divided evenly by the tables, which all draw the same noise:

    discrete Laplace   noise parameter ε / (tables * WEIGHT) on each count; δ = 0
    Gaussian           standard deviation z * WEIGHT, z calibrated so that all tables together cost ε at the study's δ

Where a patient's weight lies in several cells, the loss is dominated by that of one cell with all of it: with discrete Laplace noise the
trade-off functions of shifts a and b compose to that of a + b (Dong, Roth and Su 2022, J. R. Stat. Soc. B 84, group privacy).

A survey is a study of its own, made from the study that it is for (`survey_study`): it has its own id, offer, approval and run.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
import numpy.typing as npt

from common.study import PatientPrivacy, Study
from common.study_survey import Survey, SurveyFeature

if TYPE_CHECKING:
    from dp_accounting import DpEvent

    from common.privacy.generator import SystemGenerator

CountArray = npt.NDArray[np.int64]
TableKind = Literal["patients", "images", "classes", "intensity", "subgroup", "feature"]

WEIGHT: Final = 256
"""Units of a patient in a table: the grid on which a patient's share of each cell is a whole number."""
SURVEY_ROUND: Final = 0
"""A survey comes before the first round."""
OTHER, MISSING = "any other", "missing"
_PARAMETER_BITS: Final = 40  # the noise parameter is rounded down to a multiple of 2^-40, so that sums of ε are exact
_DELTA_SHARE: Final = 0.99  # of δ; the rest is the sampler's (`calibration.LARGEST_TAIL_SHARE`)


@dataclass(frozen=True)
class Table:
    """One table. `name` on the wire, `column` of the cohort it is about (empty for those that need none), the names of its `cells`.

    `edges` are the lower ends of the bins for images, and all ends for a feature, whose last cell is for missing values.
    """

    name: str
    kind: TableKind
    cells: tuple[str, ...]
    column: str = ""
    edges: tuple[float, ...] = ()


@dataclass(frozen=True)
class SurveyPlan:
    """All tables of a survey. `noise` is the parameter of the discrete Laplace noise, or z for Gaussian noise."""

    survey: Survey
    tables: tuple[Table, ...]
    noise: float

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name to shape of everything that is released."""
        return {table.name: (len(table.cells),) for table in self.tables}

    def event(self) -> DpEvent:
        """The whole release, for the accountant."""
        from dp_accounting import dp_event

        from common.privacy.accountant import discrete_laplace

        gaussian = self.survey.mechanism == "gaussian"
        one = dp_event.GaussianDpEvent(self.noise) if gaussian else discrete_laplace(self.noise, WEIGHT)
        return dp_event.SelfComposedDpEvent(one, len(self.tables))

    @property
    def standard_error(self) -> float:
        """Standard deviation of the noise on one cell, in patients."""
        from common.privacy.discrete_laplace import noise_variance

        return self.noise if self.survey.mechanism == "gaussian" else math.sqrt(noise_variance(self.noise)) / WEIGHT

    def noise_for(self, table: Table, generator: SystemGenerator) -> CountArray:
        """Fresh noise for each cell of a table, int64 in units."""
        from common.privacy.discrete_laplace import discrete_laplace_noise

        if self.survey.mechanism == "gaussian":
            from common.privacy.noise import rounded_gaussian

            return rounded_gaussian(len(table.cells), self.noise * WEIGHT, generator)
        return discrete_laplace_noise((len(table.cells),), self.noise, generator)


def survey_study(study: Study) -> Study:
    """The survey of a study, as a study of its own: same data, no training, ε and δ of the survey.

    A study without `survey` gets the tables that need no column. The patients' number is not checked at the sites, only held against
    the noisy count afterwards.
    """
    survey = study.survey or Survey()
    minimum = study.data.min_patients if survey.min_patients is None else survey.min_patients
    delta = study.privacy.delta if isinstance(study.privacy, PatientPrivacy) else PatientPrivacy().delta
    changes = {
        "purpose": "survey",
        "survey": survey.model_copy(update={"min_patients": minimum}).model_dump(mode="json"),
        "privacy": {"unit": "patient", "epsilon": survey.epsilon, "delta": delta},
        "data.min_patients": 2,
        "federation": {"rounds": 1, "min_sites": 1, "round_timeout_seconds": study.federation.round_timeout_seconds},
        "training": {},
        "evaluation": {"private": None},
    }
    return study.with_changes(changes)


def survey_plan(study: Study) -> SurveyPlan | None:
    """The plan of a study whose purpose is a survey; None for any other."""
    survey = study.survey
    if study.purpose != "survey" or survey is None or not isinstance(study.privacy, PatientPrivacy):
        return None
    tables = tuple(_tables(study, survey))
    if survey.mechanism == "gaussian":
        return SurveyPlan(survey, tables, _gaussian_noise(survey.epsilon, study.privacy.delta, len(tables)))
    scale = math.ldexp(1, _PARAMETER_BITS)
    return SurveyPlan(survey, tables, math.floor(survey.epsilon / (len(tables) * WEIGHT) * scale) / scale)


def is_survey_event(event_json: str) -> bool:
    """Whether a charge or a promise in the ledger is a survey's: no other release of ours has this sensitivity, or no sampling."""
    event = json.loads(event_json)
    while event.get("type") == "SelfComposedDpEvent":
        event = event["event"]
    laplace = event.get("type") == "DiscreteLaplaceDpEvent" and event.get("sensitivity") == WEIGHT
    return bool(laplace or event.get("type") == "GaussianDpEvent")


def _tables(study: Study, survey: Survey) -> list[Table]:
    tables = [Table("patients", "patients", ("patients",))]
    if survey.images_per_patient and not study.data.one_image_one_patient:
        edges = survey.images_per_patient
        tables.append(Table("images", "images", _bin_names(edges), edges=tuple(float(edge) for edge in edges)))
    if survey.classes:
        tables.append(Table("classes", "classes", study.data.labels))
    if survey.intensity_bins and study.data.kind == "image":
        ends = np.linspace(0, 256, survey.intensity_bins + 1)
        cells = tuple(f"{math.ceil(low)}–{math.ceil(high) - 1}" for low, high in pairwise(ends))
        tables.append(Table("intensity", "intensity", cells, edges=tuple(float(end) for end in ends)))
    tables += [Table(f"subgroup/{name}", "subgroup", (*names, OTHER), name) for name, names in sorted(survey.subgroups.items())]
    return [*tables, *(_feature(name, feature) for name, feature in sorted(survey.features.items()))]


def _feature(name: str, feature: SurveyFeature) -> Table:
    edges = tuple(float(edge) for edge in np.linspace(feature.low, feature.high, feature.bins + 1))
    cells = tuple(f"{low:.4g} to {high:.4g}" for low, high in pairwise(edges))
    return Table(f"feature/{name}", "feature", (*cells, MISSING), name, edges)


def _bin_names(edges: tuple[int, ...]) -> tuple[str, ...]:
    closed = [str(low) if low == high - 1 else f"{low}–{high - 1}" for low, high in pairwise(edges)]
    return (*closed, f"{edges[-1]} or more")


@lru_cache(maxsize=64)
def _gaussian_noise(epsilon: float, delta: float, tables: int) -> float:
    """The smallest z, to 0.1 %, with which `tables` releases cost at most `epsilon` by PLD."""
    from common.privacy.accountant import epsilon_pld, gaussian

    def costs(noise: float) -> float:
        return epsilon_pld([gaussian(noise, tables)], delta * _DELTA_SHARE)

    low, high = 0.01, 1.0
    while costs(high) > epsilon:
        low, high = high, 2 * high
    while high > low * 1.001:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if costs(middle) <= epsilon else (middle, high)
    return math.ceil(high * 1e6) / 1e6
