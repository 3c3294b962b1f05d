# SPDX-License-Identifier: Apache-2.0
"""How hospital IT decides on a study: what is shown, then what is done.

propose    reads the cohort, checks the policy and works out the cost; decides nothing
approve    promises the whole plan in the ledger, writes the study's folder, signs: in this order, so a crash leaves less, never more
reject     takes back what was promised, signs; also after an approval
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata

from client.approvals import Approvals
from client.budget import LinePlan, Rules, earmarks, epsilon_of_runs, line_plans, promise, withdraw
from client.offers import Offer, read_offer
from client.policy import problems
from client.site import open_ledger, patients_on_lines
from client.site_config import SiteConfig
from client.site_home import SiteHome
from client.study_folder import Prepared, prepare, write
from client.survey_budget import survey_lines
from client.survey_tables import column_problems
from common.data.checks import cohort_problems, cohort_warnings
from common.data.cohort import Split
from common.errors import InputError, RefusedError
from common.federation import ApprovalRecord
from common.privacy.charge_book import Line
from common.protocol import weights_sha256
from common.survey_plan import survey_plan

MOST_RUNS = 1000


@dataclass(frozen=True)
class Proposal:
    """What IT is asked about. `runs` counts those that the study has had here, `used`, too; `account` pays.

    `parameters` numbers leave in each update. `weights_known`: the initial weights are those that the study's seed gives here.
    `patients` (private) are found in the cohort on each line; `warnings` are for IT only.
    """

    offer: Offer
    config: SiteConfig
    cohort: str
    runs: int
    used: int
    prepared: Prepared
    plans: tuple[LinePlan, ...]
    account: str
    epsilon_total: float | None
    parameters: int
    weights_known: bool
    patients: dict[Line, int]
    warnings: tuple[str, ...]


def propose(home: SiteHome, study_id: str, cohort: str | None, further_runs: int, now: float) -> Proposal:
    """What approving would mean. The cohort's patients come to their account of the ledger; nothing else is written.

    Raises InputError, DataError for what IT can correct; RefusedError for what the policy forbids.
    """
    config, offer = SiteConfig.read(home.config), read_offer(home, study_id)
    name = cohort or _only_cohort(home, config)
    used = len(Approvals(home).runs(offer.study.id))
    if not (0 if used else 1) <= further_runs <= MOST_RUNS:
        raise InputError(f"--runs: {further_runs} is not between {0 if used else 1} and {MOST_RUNS}")
    _check(home, config, offer, name, now)
    prepared = prepare(home, config, offer, name)
    thin = _cohort_problems(prepared, offer, name)
    parameters, digest = _initial(offer)
    plans, ledger = _plans(offer, prepared, parameters), open_ledger(home.folder)
    patients = patients_on_lines(prepared.cohort, joint=prepared.settings.joint)
    account = ledger.register(patients, prepared.settings.delta)
    return Proposal(
        offer=offer,
        config=config,
        cohort=name,
        runs=used + further_runs,
        used=used,
        prepared=prepared,
        plans=plans,
        account=account,
        epsilon_total=epsilon_of_runs(ledger, plans, account, used + further_runs),
        parameters=parameters,
        weights_known=digest == offer.start.initial_weights_sha256,
        patients={line: len(members) for line, members in patients.items()},
        warnings=(*thin, *(cohort_warnings(prepared.cohort) if offer.study.purpose == "training" else ())),
    )


def approve(home: SiteHome, proposal: Proposal, by: str, now: float) -> ApprovalRecord:
    """Do what was proposed. Raises RefusedError BUDGET_EXHAUSTED when it does not fit beside what is spent and promised."""
    study, approvals = proposal.offer.study, Approvals(home)
    with approvals.lock():
        entries = earmarks(study, proposal.plans, proposal.account, proposal.runs)
        limits, allow = proposal.config.limits, proposal.config.allow
        rules = Rules(limits.epsilon_per_account, bool(allow.train_after_unprotected.strip()), limits.survey_epsilon)
        promise(open_ledger(home.folder), study, entries, proposal.plans, rules)
        write(home, proposal.prepared, approvals.runs(study.id))
        record = _record(proposal.config.name, proposal.offer, "approved", proposal.cohort, proposal.runs, proposal.epsilon_total, by, now)
        approvals.append(record)
    return record


def reject(home: SiteHome, study_id: str, by: str, now: float) -> ApprovalRecord:
    """Say no to a study, or no more: nothing of it works here from the next message on. What it has spent stays spent."""
    offer, approvals, config = read_offer(home, study_id), Approvals(home), SiteConfig.read(home.config)
    with approvals.lock():
        record = _record(config.name, offer, "rejected", "", 0, None, by, now)
        approvals.append(record)
        withdraw(open_ledger(home.folder), offer.study.id)
    return record


def _only_cohort(home: SiteHome, config: SiteConfig) -> str:
    if len(config.cohorts) != 1:
        raise InputError(f"--cohort: {home.config} has {', '.join(config.cohorts) or 'no cohort yet'}; say which one the study may use")
    return next(iter(config.cohorts))


def _check(home: SiteHome, config: SiteConfig, offer: Offer, cohort: str, now: float) -> None:
    if cohort not in config.cohorts:
        raise InputError(f"{home.config}: cohorts does not have {cohort}; name one of {', '.join(config.cohorts) or '(none yet)'}")
    if config.name not in offer.start.sites:
        raise InputError(f"{home.config}: name is {config.name}, the study was offered to {', '.join(offer.start.sites)}; correct it")
    if now > offer.start.expires:
        raise InputError(f"the offer of study {offer.study.id[:12]} has expired; ask the coordinator to offer it again")
    found = problems(config, offer.study, cohort)
    if found:
        raise RefusedError(found[0][0], "; ".join(text for _, text in found))


def _cohort_problems(prepared: Prepared, offer: Offer, name: str) -> list[str]:
    """What IT should know about the cohort. Raises InputError when the study can do nothing with it."""
    plan = survey_plan(offer.study)
    if plan is not None:
        missing = column_problems(prepared.cohort.dataset, plan)
        if missing:
            raise InputError([f"{name}: {problem}" for problem in missing])
        return []
    if not prepared.cohort.patient_count(Split.TRAIN):
        raise InputError(f"{name}: has no patient to train on")
    return cohort_problems(prepared.cohort, offer.study.data, name)


def _plans(offer: Offer, prepared: Prepared, parameters: int) -> tuple[LinePlan, ...]:
    """What one run releases. A survey is one release: where both lines of the patients count as one, it is charged once."""
    plans = line_plans(offer.study, parameters)
    paying = survey_lines(joint=prepared.settings.joint) if offer.study.purpose == "survey" else tuple(Line)
    return tuple(plan for plan in plans if plan.line in paying)


def _initial(offer: Offer) -> tuple[int, str]:
    """Count and digest of the initial weights that the study gives here; a survey has none."""
    if offer.study.purpose == "survey":
        return 0, weights_sha256({})
    from common.models.registry import initial_state

    weights = initial_state(offer.study)
    return sum(value.size for value in weights.values()), weights_sha256(weights)


def _record(
    site: str, offer: Offer, decision: str, cohort: str, runs: int, epsilon_total: float | None, by: str, now: float
) -> ApprovalRecord:
    content = {
        "site": site,
        "study_id": offer.study.id,
        "decision": decision,
        "cohort": cohort,
        "runs": runs,
        "initial_weights_sha256": offer.start.initial_weights_sha256,
        "client_version": metadata.version("wardround"),
        "epsilon_total": epsilon_total,
        "approved_by": by[:200],
        "created": now,
    }
    return ApprovalRecord.model_validate(content)
