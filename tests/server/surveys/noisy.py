# SPDX-License-Identifier: Apache-2.0
"""Survey records as sites' answers make them, with known exact tables."""

import numpy as np

from common.privacy.generator import SystemGenerator
from common.protocol import Surveyed
from common.study import Study
from common.survey_plan import WEIGHT, SurveyPlan, survey_plan, survey_study
from server.surveys.record import SurveyRecord
from tests.support.studies import PRIVATE, small

RUN_ID = "ab" * 16
SURVEY = {"epsilon": 10.0, "images_per_patient": [], "intensity_bins": 0, "features": {"age": {"low": 0, "high": 100, "bins": 10}}}


def surveyed(**survey: object) -> Study:
    return survey_study(small(PRIVATE, survey={**SURVEY, **survey}, **{"data.min_patients": 20}))


def plan_of(study: Study) -> SurveyPlan:
    plan = survey_plan(study)
    assert plan is not None
    return plan


def answer(study: Study, site: str, exact: dict[str, list[float]], noise: bool = True) -> Surveyed:
    tables = {}
    for table in plan_of(study).tables:
        units = np.round(np.array(exact[table.name]) * WEIGHT).astype(np.int64)
        tables[table.name] = units + (plan_of(study).noise_for(table, SystemGenerator()) if noise else 0)
    return Surveyed(RUN_ID, 0, site, tables)


def record_of(study: Study, exact: dict[str, dict[str, list[float]]], noise: bool = True) -> SurveyRecord:
    record = SurveyRecord(run_id=RUN_ID, study=study.canonical_json, asked=tuple(exact))
    for site, tables in exact.items():
        record = record.with_answer(answer(study, site, tables, noise))
    return record


def site(normal: float, opacity: float, ages: list[float] | None = None) -> dict[str, list[float]]:
    total = normal + opacity
    return {"patients": [total], "classes": [normal, opacity], "feature/age": ages or [total / 11] * 11}


__all__ = ["RUN_ID", "answer", "plan_of", "record_of", "site", "surveyed"]
