# SPDX-License-Identifier: Apache-2.0
"""What a study will cost in privacy, from its public numbers alone: nothing is trained and no data is read."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from common.evaluation_plan import evaluation_plan
from common.study import PatientPrivacy, Study

PLAN_ROWS = {
    "rounds": "rounds",
    "local_steps": "steps in a round",
    "steps": "steps of each site, over the study",
    "sampling_rate": "sampling rate q",
    "patients_per_step": "patients in a step, on average",
    "parameters": "trained parameters",
    "clipping_norm": "clipping norm C",
    "views_per_patient": "views of each patient",
    "noise_multiplier": "noise multiplier σ",
    "epsilon": "ε that a patient spends at a site",
    "epsilon_target": "ε that the study allows",
    "delta": "δ",
    "evaluation_epsilon": "ε that a held-out patient spends on the evaluation",
    "evaluations": "private evaluations in the run",
    "held_out_patients": "held-out patients of a site",
    "standard_error": "their standard error to expect, AUROC",
}


def plan_study(study: Study, patients: int | None, sites: int | None = None) -> dict[str, Any]:
    """The plan as facts, None where a study without privacy has none.

    `patients` is the nominal number of training patients of a site, for the expected size of a step; `sites` how many are expected,
    for the standard error of the private evaluation (default: the fewest that the study allows).
    """
    from common.models.registry import build_model

    parameters = sum(tensor.numel() for tensor in build_model(study).trainable_state().values())
    rate = study.training.sampling_rate
    return {
        "study_id": study.id,
        "name": study.name,
        "private": study.is_private,
        "rounds": study.federation.rounds,
        "local_steps": study.training.local_steps,
        "steps": study.total_steps,
        "sampling_rate": rate,
        "patients_per_step": rate * patients if patients else None,
        "parameters": parameters,
        **_privacy_facts(study, parameters),
        **_evaluation_facts(study, patients, sites or study.federation.min_sites),
    }


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """The plan as a table."""
    table = Table(show_header=False, title=f"{plan['name']}  {plan['study_id'][:8]}", title_justify="left")
    for key, words in PLAN_ROWS.items():
        if plan[key] is not None:
            value = plan[key]
            table.add_row(words, f"{value:,}" if isinstance(value, int) else f"{value:.4g}")
    console.print(table)


def _privacy_facts(study: Study, parameters: int) -> dict[str, float | int | None]:
    if not isinstance(study.privacy, PatientPrivacy):
        return dict.fromkeys(("noise_multiplier", "clipping_norm", "views_per_patient", "epsilon", "epsilon_target", "delta"))
    from common.privacy.calibration import plan_privacy

    plan = plan_privacy(study.privacy, study.training.sampling_rate, study.total_steps, parameters)
    return {
        "noise_multiplier": plan.noise_multiplier,
        "clipping_norm": plan.clipping_norm,
        "views_per_patient": study.privacy.views_per_patient,
        "epsilon": plan.epsilon,
        "epsilon_target": study.privacy.epsilon,
        "delta": plan.delta,
    }


def _evaluation_facts(study: Study, patients: int | None, sites: int) -> dict[str, float | int | None]:
    """The private evaluation; its standard error follows from the nominal number of held-out patients, where one is known."""
    plan, private = evaluation_plan(study), study.evaluation.private
    if plan is None or private is None:
        return dict.fromkeys(("evaluation_epsilon", "evaluations", "held_out_patients", "standard_error"))
    held_out = private.held_out_patients or _held_out_of(study, patients)
    return {
        "evaluation_epsilon": plan.epsilon,
        "evaluations": len(plan.rounds),
        "held_out_patients": held_out,
        "standard_error": plan.predicted_standard_error(sites, sites * held_out) if held_out else None,
    }


def _held_out_of(study: Study, patients: int | None) -> int | None:
    """Held-out patients of a site with so many training patients, by the study's shares."""
    data = study.data
    return round(patients * data.test_fraction / (1 - data.test_fraction - data.validation_fraction)) if patients else None
