# SPDX-License-Identifier: Apache-2.0
"""What the sites have answered to a survey: `survey.json` in the run's folder, written after each answer.

The tables are what left the sites, in units of 1/`WEIGHT` patient: noisy, and so free to be kept and shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import InputError, StorageError
from common.files import write_atomic
from common.protocol import Surveyed
from common.study import Study
from common.survey_plan import SurveyPlan, survey_plan

SURVEY_FILE: Final = "survey.json"
PAGE_FILE: Final = "survey.html"


class SurveyRecord(BaseModel):
    """`tables`: counts by site and table; `refused`: who gave none, with the code and the server's words on it. `study` is the survey's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int = 1
    run_id: str
    study: str
    asked: tuple[str, ...]
    tables: dict[str, dict[str, tuple[int, ...]]] = {}
    refused: dict[str, str] = {}

    @property
    def plan(self) -> SurveyPlan:
        """The plan of the survey. Raises StorageError when the file does not hold one."""
        plan = survey_plan(Study.from_canonical_json(self.study))
        if plan is None:
            raise StorageError(f"{SURVEY_FILE}: its study is no survey; was it edited? Make the survey again")
        return plan

    @property
    def survey(self) -> Study:
        """The survey, as the study that it is."""
        return Study.from_canonical_json(self.study)

    def with_answer(self, answer: Surveyed) -> SurveyRecord:
        """The record with one site's tables more; the first answer of a site counts."""
        if answer.site in self.tables:
            return self
        tables = {name: tuple(int(count) for count in np.ravel(counts)) for name, counts in answer.tables.items()}
        refused = {site: why for site, why in self.refused.items() if site != answer.site}
        return self.model_copy(update={"tables": {**self.tables, answer.site: tables}, "refused": refused})

    def with_refusal(self, site: str, why: str) -> SurveyRecord:
        """The record with the reason why a site gave nothing."""
        return self if site in self.tables else self.model_copy(update={"refused": {**self.refused, site: why}})

    def write(self, folder: Path) -> None:
        """Keep it in the run's folder. Raises StorageError."""
        write_atomic(folder / SURVEY_FILE, self.model_dump_json(indent=1))

    @classmethod
    def read(cls, folder: Path) -> SurveyRecord:
        """Raises InputError when there is none, StorageError when it is damaged."""
        path = folder / SURVEY_FILE
        if not path.exists():
            raise InputError(f"{path}: there is no survey; the run is none, or no site has answered yet")
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, ValidationError) as error:
            raise StorageError(f"{path}: cannot be read ({type(error).__name__}); restore it, or make the survey again") from error
