# SPDX-License-Identifier: Apache-2.0
"""Who pays for a survey, and the small budget of all surveys together. It lies within the cap of the account, not beside it."""

from __future__ import annotations

from collections.abc import Iterable

from client.charging import check_epsilon, usable_delta
from common.errors import RefusedError
from common.privacy.charge_book import BUDGET_EXHAUSTED, Line
from common.survey_plan import is_survey_event


def survey_lines(*, joint: bool) -> tuple[Line, ...]:
    """The lines that pay for a release on all patients; one where both count as one."""
    return (Line.TRAINING,) if joint else tuple(Line)


def check_survey_epsilon(events: Iterable[str], delta: float, limit: float) -> None:
    """Whether all surveys among `events` (canonical JSON; other releases count nothing here) stay within `limit`.

    Raises RefusedError BUDGET_EXHAUSTED.
    """
    surveys = [event for event in events if is_survey_event(event)]
    try:
        check_epsilon(surveys, usable_delta(delta, len(surveys)), limit)
    except RefusedError as error:
        raise RefusedError(BUDGET_EXHAUSTED, f"{error}: this is the budget of surveys alone, limits.survey_epsilon") from error
