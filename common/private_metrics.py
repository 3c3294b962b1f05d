# SPDX-License-Identifier: Apache-2.0
"""AUROC from noisy histograms of scores, with its standard error. Uses nothing but released counts and public numbers.

A histogram is int64 [questions, 2, bins]: for each question (the finding in a binary task, each class against the rest otherwise) the
number of held-out patients by label (0, 1) and by bin of the score, each count with discrete Laplace noise of a known parameter. Sites'
histograms are added first. Noisy counts may be negative and stay so: cutting them at zero would add patients to empty bins and bias the
AUROC towards one half. So an estimate may lie a little outside 0…1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.privacy.discrete_laplace import noise_variance

CountArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

LARGEST_STANDARD_ERROR = 0.05
"""Above it the answer is "not measurable"."""
ASSUMED_AUROC = 0.8
"""For predictions; classes are assumed to be equally frequent."""


@dataclass(frozen=True)
class Estimate:
    """An estimated AUROC. `value` may lie slightly outside 0…1. None where it cannot even be computed."""

    value: float | None
    standard_error: float | None

    @property
    def is_measurable(self) -> bool:
        """Whether the standard error is at most `LARGEST_STANDARD_ERROR`."""
        return self.value is not None and self.standard_error is not None and self.standard_error <= LARGEST_STANDARD_ERROR


def private_auroc(counts: CountArray, noise_parameter: float, sites: int) -> Estimate:
    """AUROC, macro mean over questions, from the sum of `sites` noisy histograms [questions, 2, bins].

    The standard error covers the sampling of the patients and the noise, not the binning. Questions share patients, so their sampling
    errors are added as if they moved together; their noise is independent.
    """
    variance = sites * noise_variance(noise_parameter)
    parts = [_one_question(question[0].astype(np.float64), question[1].astype(np.float64), variance) for question in counts]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts) or not parts:
        return Estimate(None, None)
    value, sampling, noise = (np.array(column) for column in zip(*known, strict=True))
    error = math.hypot(float(sampling.mean()), float(np.sqrt((noise**2).sum())) / len(parts))
    return Estimate(float(value.mean()), error)


def predicted_standard_error(patients: float, sites: int, bins: int, noise_parameter: float, questions: int = 1) -> float:
    """Standard error to expect from public numbers: `patients` held out over all `sites`, one class in `questions + 1`, at least half.

    Assumes an AUROC of `ASSUMED_AUROC` and scores that lie apart from the empty bins, which is the less favourable case.
    """
    positives = patients / max(2, questions)
    negatives = patients - positives
    sampling = sampling_error(ASSUMED_AUROC, positives, negatives)
    spread = bins * (ASSUMED_AUROC**2 + (1 - ASSUMED_AUROC) ** 2) / 2
    noise = math.sqrt(sites * noise_variance(noise_parameter) * spread * (positives**-2 + negatives**-2))
    return math.hypot(sampling, noise / math.sqrt(questions))


def sampling_error(auroc: float, positives: float, negatives: float) -> float:
    """Standard error of an AUROC by Hanley and McNeil (1982, Radiology 143, 29-36); 0 at an AUROC of 0 or 1."""
    area = min(max(auroc, 0.0), 1.0)
    both_positive, both_negative = area / (2 - area), 2 * area**2 / (1 + area)
    total = area * (1 - area) + (positives - 1) * (both_positive - area**2) + (negatives - 1) * (both_negative - area**2)
    return math.sqrt(max(total, 0.0) / (positives * negatives))


def _one_question(negative: FloatArray, positive: FloatArray, variance: float) -> tuple[float, float, float] | None:
    """AUROC, its sampling error and its error by noise; None with less than two patients of a label.

    Mann-Whitney with ties as one half: sum of positive[b] * below[b] over the product of the totals, where below[b] is the number of
    negatives under bin b plus half of those in it. Noise by the delta method: the derivative with respect to positive[b] is (below[b] /
    negatives - auroc) / positives, and likewise for negative[b] with the positives above.
    """
    negatives, positives = float(negative.sum()), float(positive.sum())
    if negatives < 2 or positives < 2:
        return None
    below = (np.cumsum(negative) - negative / 2) / negatives
    above = (positives - np.cumsum(positive) + positive / 2) / positives
    auroc = float(positive @ below) / positives
    by_positive = float(((below - auroc) ** 2).sum()) / positives**2
    by_negative = float(((above - auroc) ** 2).sum()) / negatives**2
    edge = 0.5 / (positives * negatives)  # an AUROC of exactly 1 is no proof of no error
    return auroc, sampling_error(min(max(auroc, edge), 1 - edge), positives, negatives), math.sqrt(variance * (by_positive + by_negative))
