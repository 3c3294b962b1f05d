# SPDX-License-Identifier: Apache-2.0
"""What a study will cost, and whether it fits beside everything that was spent and promised.

At approval the whole plan (training and measurement, all runs) is promised in the ledger. It is promised only if the whole history of
each line, what other studies are still promised, and this plan together stay within the site's cap, by PLD at the account's δ; so what
was promised once is not refused later because of another study.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from client.charging import check_epsilon, usable_delta
from client.ledger.book import Ledger
from client.ledger.earmarks import left_of
from client.ledger.fold import LedgerFold
from client.ledger.rows import EarmarkEntry
from client.survey_budget import check_survey_epsilon
from common.errors import RefusedError
from common.evaluation_plan import evaluation_plan
from common.privacy.accountant import epsilon_pld, event_from_json, event_to_json, is_unprotected, poisson_gaussian
from common.privacy.calibration import plan_privacy
from common.privacy.charge_book import Line, State
from common.protocol import RefusalCode
from common.study import PatientPrivacy, Study
from common.survey_plan import is_survey_event, survey_plan


@dataclass(frozen=True)
class LinePlan:
    """What one run releases on a line: `rounds` times `event_json`, together at most `epsilon` at the study's δ."""

    line: Line
    event_json: str
    rounds: int
    epsilon: float


@dataclass(frozen=True)
class Rules:
    """What the site's policy says about spending: the most ε of a line, and whether protection may go on after an unprotected release.

    `survey_cap`: the most ε of all surveys on a line.
    """

    epsilon_cap: float
    train_after_unprotected: bool
    survey_cap: float = math.inf


def line_plans(study: Study, parameter_count: int) -> tuple[LinePlan, ...]:
    """What one run of `study` releases, training first; nothing that can be counted for a study without privacy.

    A survey is the same release for both lines.
    """
    privacy, survey = study.privacy, survey_plan(study)
    if not isinstance(privacy, PatientPrivacy):
        return ()
    if survey is not None:
        return tuple(LinePlan(line, event_to_json(survey.event()), 1, survey.survey.epsilon) for line in Line)
    plan = plan_privacy(privacy, study.training.sampling_rate, study.total_steps, parameter_count)
    one_round = poisson_gaussian(plan.sampling_rate, plan.accounted_noise_multiplier, study.training.local_steps)
    plans = [LinePlan(Line.TRAINING, event_to_json(one_round), study.federation.rounds, privacy.epsilon)]
    measured = evaluation_plan(study)
    if measured is not None:
        plans.append(LinePlan(Line.HELD_OUT, event_to_json(measured.event()), len(measured.rounds), measured.epsilon))
    return tuple(plans)


def earmarks(study: Study, plans: Sequence[LinePlan], account: str, runs: int) -> list[EarmarkEntry]:
    """The rows that promise `runs` runs."""
    return [EarmarkEntry(account, plan.line, study.id, plan.event_json, plan.rounds * runs, runs) for plan in plans]


def epsilon_of_runs(ledger: Ledger, plans: Sequence[LinePlan], account: str, runs: int) -> float | None:
    """ε of all `runs` runs for the patients who pay most, by themselves, at the account's δ; None without privacy."""
    if not plans:
        return None
    joint, delta = ledger.fold().accounts.is_joint(account), ledger.delta(account)
    parts = [plans] if joint else [[plan] for plan in plans]
    return max(epsilon_pld([event_from_json(plan.event_json) for plan in part for _ in range(plan.rounds * runs)], delta) for part in parts)


def promise(ledger: Ledger, study: Study, entries: Sequence[EarmarkEntry], plans: Sequence[LinePlan], rules: Rules) -> None:
    """Write the promise if it fits; nobody else spends or is promised anything in between.

    Raises RefusedError BUDGET_EXHAUSTED; STUDY_NOT_APPROVED for a δ above the account's.
    """

    def check(fold: LedgerFold) -> None:
        for entry in entries:
            check_fits(fold, study, entry, entries, plans, rules)

    ledger.earmark(entries, check)


def check_fits(
    fold: LedgerFold, study: Study, entry: EarmarkEntry, entries: Sequence[EarmarkEntry], plans: Sequence[LinePlan], rules: Rules
) -> None:
    """Whether the line of `entry` can pay for all that the study will charge to it. Raises RefusedError."""
    account, line = entry.account, entry.line
    delta = fold.accounts.delta(account)
    if isinstance(study.privacy, PatientPrivacy) and study.privacy.delta > delta:
        raise RefusedError(RefusalCode.STUDY_NOT_APPROVED, f"the study's δ {study.privacy.delta:g} is above {delta:g}, that of the account")
    history = [charge for charge in fold.history(account, line) if charge.state is not State.SETTLED]
    protected = [charge for charge in history if not is_unprotected(event_from_json(charge.event_json))]
    if len(protected) < len(history) and not rules.train_after_unprotected:
        raise RefusedError(
            RefusalCode.BUDGET_EXHAUSTED, f"something left without protection before ({line} line of account {account[:12]})"
        )
    others = [one for one in fold.promises(account, line) if one.earmark.study_id != study.id]
    own = [left_of(one, fold.charge_fold.charges) for one in entries if one.line is line or fold.accounts.is_joint(account)]
    if is_survey_event(entry.event_json):
        surveys = [charge.event_json for charge in protected] + [one.event_json for one in [*others, *own] if one.count]
        check_survey_epsilon(surveys, delta, rules.survey_cap)
    if not history and not others and len(own) == 1 and entry.runs == 1:
        _check_alone(plans, line, rules.epsilon_cap)
        return
    promises = [*others, *(one for one in own if one.count)]
    whole = [charge.event_json for charge in protected] + [one.event_json for one in promises]
    runs = {(charge.key.study_id, charge.key.run_id) for charge in history}
    check_epsilon(whole, usable_delta(delta, len(runs) + sum(one.new_runs for one in promises)), rules.epsilon_cap)


def _check_alone(plans: Sequence[LinePlan], line: Line, cap: float) -> None:
    """One run on a line that paid nothing yet: its noise was chosen so that it costs its ε, which is compared exactly."""
    epsilon = next(plan.epsilon for plan in plans if plan.line is line)
    if epsilon > cap:
        raise RefusedError(RefusalCode.BUDGET_EXHAUSTED, f"the study spends ε={epsilon:g} on the {line} line, allowed are {cap:g}")


def withdraw(ledger: Ledger, study_id: str) -> None:
    """Take back what a study was promised and has not spent."""
    standing = [entry for line in Line if (entry := ledger.fold().earmarks.standing(study_id, line)) is not None]
    if standing:
        ledger.earmark([replace(entry, count=0, runs=0) for entry in standing])
