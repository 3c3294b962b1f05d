# SPDX-License-Identifier: Apache-2.0
"""A survey in plain words, for the person who decides: which tables leave, with how much noise, and what that costs the patients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.survey_plan import SurveyPlan, Table, survey_plan

if TYPE_CHECKING:
    from client.approving import Proposal

_WHAT = {
    "patients": "how many patients there are",
    "images": "patients by number of images, in {cells} bins",
    "classes": "patients by label: {names}",
    "intensity": "grey values of the images, in {cells} bins, averaged for each patient",
    "subgroup": "patients by {column}: {names}",
    "feature": "patients by {column}, {low:g} to {high:g} in {bins} bins, and how many have no value",
}


def survey_in_words(proposal: Proposal) -> str:
    """All that is shown before the question, as paragraphs."""
    study, plan = proposal.offer.study, survey_plan(proposal.offer.study)
    parts = [
        (f"Survey for study {study.name} ({study.id[:12]})", [study.description] if study.description else []),
        ("What it does", _what_it_does(proposal)),
        ("What leaves this hospital", _what_leaves(plan) if plan is not None else []),
        ("What it costs", _what_it_costs(proposal)),
        ("What was found in the data (stays here)", _what_was_found(proposal)),
    ]
    return "\n\n".join("\n".join([title, *(f"  - {line}" for line in lines)]) for title, lines in parts)


def table_in_words(table: Table) -> str:
    """One table in a line."""
    low, high = (table.edges[0], table.edges[-1]) if table.edges else (0.0, 0.0)
    facts = {"cells": len(table.cells), "bins": len(table.cells) - 1, "column": table.column, "low": low, "high": high}
    return _WHAT[table.kind].format(names=", ".join(table.cells), **facts)


def _what_it_does(proposal: Proposal) -> list[str]:
    others = [name for name in proposal.offer.start.sites if name != proposal.config.name]
    again = proposal.runs - proposal.used
    return [
        f"It counts patients of cohort {proposal.cohort}, those who train and those who are held out. Nothing is trained.",
        f"Once a run; {again} run(s) are asked for. The same is asked of {', '.join(others) or 'nobody else'}.",
    ]


def _what_leaves(plan: SurveyPlan) -> list[str]:
    tables = [f"Table {number}: {table_in_words(table)}." for number, table in enumerate(plan.tables, 1)]
    return [
        *tables,
        f"To every number noise is added, about ±{plan.standard_error:.1f} patients (standard deviation); the true numbers stay here.",
        "In each table a patient counts as one in all, however many images there are. This site's tables can be told from the others'.",
        "With the reply the number of rows and the signed head of the ledger, and a signed statement about the reply.",
        "Or, instead of a reply, one refusal code. No image, no patient id, no exact count, no text.",
    ]


def _what_it_costs(proposal: Proposal) -> list[str]:
    limits, delta, total = proposal.config.limits, proposal.prepared.settings.delta, proposal.epsilon_total or 0.0
    return [
        f"At most ε = {total:.3f} for every patient, training and held-out, over all runs of this survey; δ = {delta:g}.",
        f"It is promised in the ledger (account {proposal.account[:8]}), out of limits.survey_epsilon {limits.survey_epsilon:g} for all "
        f"surveys and within limits.epsilon_per_account {limits.epsilon_per_account:g}; what it takes is not there for training any more.",
    ]


def _what_was_found(proposal: Proposal) -> list[str]:
    patients = len(proposal.prepared.cohort.dataset.patient_ids)
    lines = [f"Patients: {patients}; public nominal size {proposal.prepared.settings.nominal_patients}."]
    if proposal.prepared.settings.joint:
        lines.append("The data set brings its own split, so the patients have one line for everything, and pay once.")
    return [*lines, *proposal.warnings]
