# SPDX-License-Identifier: Apache-2.0
"""The page of an audit: one self-contained HTML file for whoever must sign the release."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from common.data.cohort import ByteArray
from simulations.audit import figures
from simulations.audit.bounds import perfect_bound
from simulations.audit.design import SHOWN_CONFIDENCE
from simulations.audit.membership import scores_of
from simulations.audit.results import AuditResult, Run
from simulations.pages import write_page
from simulations.plots import Judged, Points, roc_points

PICTURE_PIXELS = 256


def write_audit(result: AuditResult, path: Path) -> Path:
    """Write the page to `path` and return it. Raises StorageError when it cannot be written."""
    design = result.design
    context: dict[str, object] = {
        "result": result,
        "design": design,
        "possible_95": perfect_bound(design.canaries, design.guesses, design.delta, SHOWN_CONFIDENCE),
        "figures": _figures(result),
        "pictures": [_picture(image) for image in (result.original, result.control.picture.image, result.private.picture.image)],
    }
    return write_page(path, "audit.html", context)


def _figures(result: AuditResult) -> dict[str, str]:
    private, control, claim = result.private, result.control, result.design.epsilon
    rows = [("private run", private.bound), ("control, σ = 0", control.bound)]
    words = f"ε proved at 99.9 %: private {private.bound.epsilon_999:.2f}, control {control.bound.epsilon_999:.2f}, claim {claim:.2f}."
    return {
        "bounds": figures.bound_bars(rows, claim, result.design.possible_epsilon, words),
        "private": _histogram(result, private, "private"),
        "control": _histogram(result, control, "control"),
        "membership": figures.membership_curves(
            [_membership_points(private), _membership_points(control)], "Membership inference by loss, with privacy and without noise."
        ),
    }


def _histogram(result: AuditResult, run: Run, prefix: str) -> str:
    scores = np.sort(run.attacked.scores)
    half = result.design.guesses // 2
    last = float(scores[-half]), float(scores[result.design.guesses - half - 1])
    alt = f"Scores of canaries that were in and out; {run.bound.right} of {run.bound.guesses} guesses are right."
    return figures.score_histogram(run.attacked.scores, run.attacked.included, last, alt, prefix)


def _membership_points(run: Run) -> Points:
    losses = np.concatenate([run.attacked.member_losses, run.attacked.held_out_losses])
    labels: npt.NDArray[np.int64] = (np.arange(len(losses)) < len(run.attacked.member_losses)).astype(np.int64)
    return roc_points(Judged(labels, scores_of(losses), "group"))


def _picture(image: ByteArray) -> str:
    from simulations.describe import thumbnail

    return thumbnail(image, PICTURE_PIXELS)
