# SPDX-License-Identifier: Apache-2.0
"""A study in plain words, for the person who decides: what it does, what leaves the hospital, what it costs the patients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from common.privacy.charge_book import Line
from common.study import PatientPrivacy, Study

if TYPE_CHECKING:
    from client.approving import Proposal


def in_words(proposal: Proposal) -> str:
    """All that is shown before the question, as paragraphs."""
    study = proposal.offer.study
    if study.purpose == "survey":
        from client.survey_words import survey_in_words

        return survey_in_words(proposal)
    parts = [
        (f"Study {study.name} ({study.id[:12]})", [study.description] if study.description else []),
        ("What it does", _what_it_does(proposal)),
        ("What leaves this hospital", _what_leaves(proposal)),
        ("What it costs", _what_it_costs(proposal)),
        ("What was found in the data (stays here)", _what_was_found(proposal)),
    ]
    return "\n\n".join("\n".join([title, *(f"  - {line}" for line in lines)]) for title, lines in parts)


def _what_it_does(proposal: Proposal) -> list[str]:
    study, start = proposal.offer.study, proposal.offer.start
    others = [name for name in start.sites if name != proposal.config.name]
    weights = (
        "those that the study's seed gives" if proposal.weights_known else "NOT those that the study's seed gives here: ask the coordinator"
    )
    return [
        f"It trains {study.model.name} ({study.task}: {', '.join(study.data.labels)}) on cohort {proposal.cohort}, on this machine.",
        f"{study.federation.rounds} rounds of {study.training.local_steps} steps; together with {', '.join(others) or 'nobody else'}.",
        f"{_runs(proposal)} Initial weights: {weights} ({start.initial_weights_sha256[:12]}).",
        *_what_it_reads(study),
    ]


def _what_it_reads(study: Study) -> list[str]:
    """The columns of a table that it looks at; an image is looked at whole."""
    if study.data.kind == "image":
        return []
    return [f"Of the table it reads {study.data.label_column} (what it learns to tell) and {', '.join(sorted(study.data.columns))}."]


def _runs(proposal: Proposal) -> str:
    further = proposal.runs - proposal.used
    if not proposal.used:
        return "One run." if further == 1 else f"{further} runs."
    more = f"{further} more, after" if further else "No further run, only"
    return f"{more} the {proposal.used} that began here before."


def _what_leaves(proposal: Proposal) -> list[str]:
    study = proposal.offer.study
    noisy = "each patient's share clipped, with noise" if study.is_private else "EXACT, WITHOUT NOISE"
    lines = [f"After each round the change of the model, {proposal.parameters:,} numbers ({noisy})."]
    if study.is_private and study.evaluation.private is not None:
        private = study.evaluation.private
        count = len(private.rounds(study.federation.rounds))
        lines.append(f"{count} time(s) a histogram of held-out patients' scores in {private.bins} bins, with noise.")
    lines.append("With each reply the number of rows and the signed head of the ledger, and a signed statement about the reply.")
    lines.append("Or, instead of a reply, one refusal code. No image, no label, no patient id, no count of patients, no text.")
    return lines


def _what_it_costs(proposal: Proposal) -> list[str]:
    study = proposal.offer.study
    if not isinstance(study.privacy, PatientPrivacy):
        return [
            "NOT PROTECTED: what leaves may tell about single patients. From then on these patients count as not protected, for good;",
            "private studies on them are refused unless site.yaml says in words why they may go on.",
        ]
    who = {Line.TRAINING: "patients who train", Line.HELD_OUT: "held-out patients, who are only measured"}
    lines = [f"ε at most {plan.epsilon:g} a run for {who[plan.line]}." for plan in proposal.plans]
    delta, total = proposal.prepared.settings.delta, proposal.epsilon_total or 0.0
    lines.append(f"δ = {delta:g}; at most ε = {total:.3f} for any patient over all runs of this study.")
    lines.append(
        f"The whole plan is promised in the ledger (account {proposal.account[:8]}, cap {proposal.config.limits.epsilon_per_account:g}); "
        "if it does not fit beside what is spent and promised, it is refused now."
    )
    return lines


def _what_was_found(proposal: Proposal) -> list[str]:
    counts = ", ".join(f"{count} {'train' if line is Line.TRAINING else 'are held out'}" for line, count in proposal.patients.items())
    joint = proposal.prepared.settings.joint
    nominal = proposal.prepared.settings.nominal_patients
    lines = [f"Patients: {counts}; public nominal size {nominal}."]
    if joint:
        lines.append("The data set brings its own split, so every patient pays for training and measurement together.")
    return [*lines, *proposal.warnings]


def privacy_in_words(study: Study) -> str:
    """The protection of a study in a few letters."""
    return f"ε={study.privacy.epsilon:g}" if isinstance(study.privacy, PatientPrivacy) else "NONE"
