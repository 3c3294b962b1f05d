# SPDX-License-Identifier: Apache-2.0
"""From scores to a verdict.

failed          the private run's bound at 99.9 % is above the claim: the claim is wrong, do not release
inconclusive    the control (no noise) was not caught: the attack is too weak here, so a low bound says nothing
passed          the control was caught and the private run was not
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from common.errors import AuditFailed
from simulations.audit.bounds import epsilon_lower_bound
from simulations.audit.design import FAILING_CONFIDENCE, SHOWN_CONFIDENCE, Design


class Verdict(StrEnum):
    """What an audit says."""

    PASSED = "passed"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Bound:
    """Guesses on one run, and the ε that they prove at 95 % and at 99.9 %."""

    guesses: int
    right: int
    epsilon_95: float
    epsilon_999: float


def bound_of(design: Design, scores: npt.NDArray[np.float64], included: npt.NDArray[np.bool_]) -> Bound:
    """Guess "in" for the highest half of the design's guesses and "out" for the lowest, and count.

    Raises ValueError when scores are not finite or do not fit the design.
    """
    if len(scores) != design.canaries or not np.isfinite(scores).all():
        raise ValueError(f"{len(scores)} scores for {design.canaries} canaries, finite: {bool(np.isfinite(scores).all())}")
    order = np.argsort(-scores, kind="stable")
    half = design.guesses // 2
    ins, outs = order[:half], order[len(order) - (design.guesses - half) :]
    right = int(included[ins].sum() + (~included[outs]).sum())
    shown, failing = (
        epsilon_lower_bound(design.canaries, design.guesses, right, design.delta, confidence)
        for confidence in (SHOWN_CONFIDENCE, FAILING_CONFIDENCE)
    )
    return Bound(design.guesses, right, shown, failing)


def judge(design: Design, private: Bound, control: Bound) -> Verdict:
    """The verdict; both bounds are measured against the private run's claim."""
    if private.epsilon_999 > design.epsilon:
        return Verdict.FAILED
    return Verdict.PASSED if control.epsilon_999 > design.epsilon else Verdict.INCONCLUSIVE


def check(verdict: Verdict, design: Design, private: Bound) -> None:
    """Raises AuditFailed unless the audit passed."""
    if verdict is Verdict.FAILED:
        raise AuditFailed(
            f"audit: the claim is wrong: ε is at least {private.epsilon_999:.2f} at 99.9 %, claimed is {design.epsilon:.2f} "
            f"(δ={design.delta:g}); release nothing that was trained with this code"
        )
    if verdict is Verdict.INCONCLUSIVE:
        raise AuditFailed(
            "audit: inconclusive: the attack did not catch the control, which has no noise at all, so it proves nothing about the private "
            "run either; give more rounds or steps, or audit at a smaller ε with --epsilon"
        )
