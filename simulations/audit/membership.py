# SPDX-License-Identifier: Apache-2.0
"""Membership inference by loss (Yeom et al. 2018, arXiv 1709.01604): does a model know its own patients better than others?

The weakest attack on the page and the best known: it sees the published model only. Members are the site's training patients, the
others its held-out patients; the score of a patient is the mean loss over their images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from common.metrics import auroc_interval, metrics_of

FloatArray = npt.NDArray[np.float64]

FALSE_ALARMS: Final = 0.01


@dataclass(frozen=True)
class Membership:
    """`found_at_one_percent`: share of members found when at most one in a hundred others is taken for one. None: cannot be measured."""

    members: int
    others: int
    auroc: float | None
    interval: tuple[float, float] | None
    found_at_one_percent: float | None


def membership(member_losses: FloatArray, other_losses: FloatArray) -> Membership:
    """Membership inference from mean losses of members [M] and others [O]."""
    labels = np.concatenate([np.ones(len(member_losses), np.int64), np.zeros(len(other_losses), np.int64)])
    scores = scores_of(np.concatenate([member_losses, other_losses]))
    interval = auroc_interval(labels, scores, np.arange(len(labels)))
    found = found_at(member_losses, other_losses, FALSE_ALARMS)
    return Membership(len(member_losses), len(other_losses), metrics_of(labels, scores)["auroc"], interval, found)


def scores_of(losses: FloatArray) -> FloatArray:
    """A small loss as a high score in 0…1 with the same order (ranks, so that no two different losses fall together)."""
    order = np.unique(losses, return_inverse=True)[1].reshape(-1)
    return np.asarray(1 - order / max(int(order.max(initial=0)), 1), dtype=np.float64)


def found_at(member_losses: FloatArray, other_losses: FloatArray, false_alarms: float) -> float | None:
    """Share of members with a loss below that of all but `false_alarms` of the others; None with too few others to say."""
    allowed = int(false_alarms * len(other_losses))
    if not len(member_losses) or len(other_losses) * false_alarms < 1:
        return None
    threshold = np.sort(other_losses)[allowed]
    return float(np.mean(member_losses < threshold))
