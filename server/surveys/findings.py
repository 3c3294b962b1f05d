# SPDX-License-Identifier: Apache-2.0
"""What a survey says about a study: who is alike, who lacks a class, who is small; for the page and for machines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Any

from common.survey_plan import SurveyPlan, Table
from server.surveys.figures import QUANTILES, SURE, Distance, Figure, NoisyTable, Numbers, distance, numbers
from server.surveys.record import SurveyRecord

SEEN = 3.0
"""A class is seen at a site when its count is above so many standard errors of the noise."""
YES, NO, UNSURE = "yes", "no", "cannot be told"


@dataclass(frozen=True)
class Pair:
    """The distance of two sites in one table; None where it is not measurable."""

    one: str
    other: str
    distance: Distance | None


@dataclass(frozen=True)
class Lack:
    """A class that was not seen at a site: there may be none, and hardly more than `at_most` patients."""

    site: str
    label: str
    at_most: float


@dataclass(frozen=True)
class Findings:
    """A survey's record, read. Sites are in alphabetical order, tables in that of the plan."""

    record: SurveyRecord

    @cached_property
    def plan(self) -> SurveyPlan:
        """The plan of the survey."""
        return self.record.plan

    @cached_property
    def sites(self) -> list[str]:
        """Those that have answered."""
        return sorted(self.record.tables)

    def of(self, table: Table, site: str) -> NoisyTable:
        """One site's table."""
        return NoisyTable.of(table, self.record.tables[site][table.name], self.plan.standard_error)

    def pooled(self, table: Table) -> NoisyTable:
        """All sites together."""
        return NoisyTable.sum_of([self.of(table, site) for site in self.sites])

    def patients(self, site: str) -> Figure:
        """The noisy number of patients of a site."""
        return self.of(self.plan.tables[0], site).total

    def reaches_minimum(self, site: str) -> str:
        """Whether a site has as many patients as the study asks for, by the noisy count."""
        found, minimum = self.patients(site), self.plan.survey.min_patients or 0
        if found.value - SURE * found.error >= minimum:
            return YES
        return NO if found.value + SURE * found.error < minimum else UNSURE

    def pairs(self, table: Table) -> list[Pair]:
        """Every two sites."""
        return [Pair(one, other, distance(self.of(table, one), self.of(table, other))) for one, other in combinations(self.sites, 2)]

    def compared(self) -> list[Table]:
        """The tables in which sites can be compared: those with more than one cell, once there is a site."""
        return [table for table in self.plan.tables if len(table.cells) > 1 and self.sites]

    def lacks(self) -> list[Lack]:
        """Classes that were not seen at a site, above the noise."""
        return [
            Lack(site, label, max(float(count), 0.0) + SURE * self.plan.standard_error)
            for table in self.plan.tables
            if table.kind == "classes"
            for site in self.sites
            for label, count in zip(table.cells, self.of(table, site).counts, strict=True)
            if count <= SEEN * self.plan.standard_error
        ]

    def numbers(self, table: Table) -> dict[str, Numbers]:
        """Mean and quantiles of a column of numbers at each site, and at all together under ""."""
        return {**{site: numbers(self.of(table, site)) for site in self.sites}, "": numbers(self.pooled(table))}

    def as_json(self) -> dict[str, Any]:
        """For machines. Counts are in patients, as measured; each has the standard error `noise`."""
        survey = self.plan.survey
        return {
            "run_id": self.record.run_id,
            "survey_id": self.record.survey.id,
            "epsilon": survey.epsilon,
            "mechanism": survey.mechanism,
            "noise": self.plan.standard_error,
            "min_patients": survey.min_patients,
            "sites": {site: self._site_json(site) for site in self.sites},
            "refused": self.record.refused,
            "distances": {table.name: [_pair_json(pair) for pair in self.pairs(table)] for table in self.compared()},
            "classes_not_seen": [{"site": lack.site, "class": lack.label, "at_most": lack.at_most} for lack in self.lacks()],
        }

    def _site_json(self, site: str) -> dict[str, Any]:
        tables = {table.name: self.of(table, site) for table in self.plan.tables}
        features = {table.column: _numbers_json(numbers(tables[table.name])) for table in self.plan.tables if table.kind == "feature"}
        return {
            "patients": self.patients(site).value,
            "reaches_minimum": self.reaches_minimum(site),
            "tables": {name: dict(zip(one.table.cells, one.counts.tolist(), strict=True)) for name, one in tables.items()},
            "features": features,
        }


def _pair_json(pair: Pair) -> dict[str, Any]:
    found = pair.distance
    facts = {"distance": found.value, "by_noise": found.by_noise, "differs": found.is_sure} if found else {"distance": None}
    return {"sites": [pair.one, pair.other], **facts}


def _numbers_json(found: Numbers) -> dict[str, Any]:
    return {
        "mean": found.mean.value if found.mean else None,
        "mean_error": found.mean.error if found.mean else None,
        "standard_deviation": found.deviation,
        "quantiles": {f"{share:g}": None if one is None else list(one) for share, one in zip(QUANTILES, found.quantiles, strict=True)},
        "missing": found.missing.value if found.missing else None,
    }
