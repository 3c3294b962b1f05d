# SPDX-License-Identifier: Apache-2.0
"""The hospital's own rules, `site.yaml`, held against a study. Policy outranks study, study outranks message.

A study may be stricter than the policy, never looser. Everything here is answered from public numbers: the policy, the study, and the
cohort's nominal size; no patient is looked at. What a site spends is not here but in the ledger (`client.budget`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import datetime

from client.site_config import SiteConfig
from common.study import PatientPrivacy, Study
from common.wire_names import RefusalCode

Problem = tuple[RefusalCode, str]
"""What leaves the site, and the sentence for hospital IT."""
HISTOGRAM = "histogram"


def problems(config: SiteConfig, study: Study, cohort: str) -> list[Problem]:
    """Everything in `study` that the policy forbids on the cohort of that name; empty when it may run."""
    kind_problems = _survey_problems if study.purpose == "survey" else _kind_problems
    forbidden = [*kind_problems(config, study), *_privacy_problems(config, study)]
    return [*((RefusalCode.POLICY_REFUSED, text) for text in forbidden), *_cohort_problems(config, study, cohort)]


def is_open(config: SiteConfig, now: float) -> bool:
    """Whether the schedule allows work at `now` (seconds since the epoch), by the local clock. Without a schedule always."""
    return config.limits.is_open(datetime.fromtimestamp(now).time())


def _kind_problems(config: SiteConfig, study: Study) -> Iterator[str]:
    """What the study does, and what it wants to have."""
    if study.task not in config.allow.tasks:
        yield f"allow.tasks does not have {study.task}"
    if study.model.name not in config.allow.models:
        yield f"allow.models does not have {study.model.name}"
    if study.is_private and study.evaluation.private is not None and HISTOGRAM not in config.metrics_may_leave:
        yield f"the study asks for a {HISTOGRAM} of held-out patients' scores with noise, and metrics_may_leave does not have it"


def _survey_problems(config: SiteConfig, study: Study) -> Iterator[str]:
    """A survey builds no model; it has a small budget of its own."""
    limit = config.limits.survey_epsilon
    if not isinstance(study.privacy, PatientPrivacy) or study.privacy.epsilon > limit:
        spends = study.privacy.epsilon if isinstance(study.privacy, PatientPrivacy) else math.inf
        yield f"the survey spends ε={spends:g}, limits.survey_epsilon is {limit:g}" + ("" if limit else ": this site answers no survey")


def _privacy_problems(config: SiteConfig, study: Study) -> Iterator[str]:
    """How well the study protects a patient, whatever was spent before."""
    privacy, limits = study.privacy, config.limits
    if not isinstance(privacy, PatientPrivacy):
        if study.id not in config.allow.unprotected_studies:
            yield f"the study has no privacy, and allow.unprotected_studies does not have its id {study.id}"
        return
    if privacy.epsilon > limits.epsilon_per_account:
        yield f"the study spends ε={privacy.epsilon:g} on training, limits.epsilon_per_account is {limits.epsilon_per_account:g}"
    evaluation = study.evaluation.private
    if evaluation is not None and evaluation.epsilon > limits.epsilon_per_account:
        yield f"the study spends ε={evaluation.epsilon:g} on measuring, limits.epsilon_per_account is {limits.epsilon_per_account:g}"
    if privacy.delta > limits.delta:
        yield f"the study's δ is {privacy.delta:g}, limits.delta is {limits.delta:g}"


def _cohort_problems(config: SiteConfig, study: Study, cohort: str) -> Iterator[Problem]:
    """Whether the cohort is there and large enough, by its public nominal size."""
    if cohort not in config.cohorts:
        yield RefusalCode.NOT_READY, f"cohorts does not have {cohort}; it was renamed or removed, so approve the study for another one"
        return
    nominal = config.cohorts[cohort].nominal_patients
    if nominal < config.limits.min_patients:
        yield RefusalCode.POLICY_REFUSED, f"{cohort} has a nominal size of {nominal}, limits.min_patients is {config.limits.min_patients}"
    if nominal < study.data.min_patients:
        yield RefusalCode.NOT_READY, f"{cohort} has a nominal size of {nominal}, the study asks for {study.data.min_patients}"
