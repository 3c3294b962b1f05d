# SPDX-License-Identifier: Apache-2.0
"""One score a canary: how much the updates of all rounds speak for it having been in the training data.

In each round the attacker estimates how many times each canary was in the sum (`ridge` against everybody else's gradients, or the plain
inner product where gradients are orthogonal) and adds up log-likelihood ratios of "in, drawn by a coin in each step" against "out".
Any function of what was released is allowed as a score; a bad one only makes the bound weaker.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]

LEAST_ERROR: Final = 0.15
MOST_A_ROUND: Final = 3.0  # one round is never enough: an estimate may be far off where the model moved within the round
LEAST_LOG_CHANCE: Final = -40.0
SMALLEST_SQUARE: Final = 1e-12
LEAST_LENGTH: Final = 1e-3  # of C; a gradient below is that of a canary that was learnt by heart
SMALLEST_VALUE: Final = 1e-6
RATIOS: Final = np.logspace(-8, 4, 49)  # of noise variance to signal variance


@dataclass(frozen=True)
class Counts:
    """How many times each canary was in a round's sum: estimate and standard deviation of its error, both [m]."""

    estimate: FloatArray
    error: FloatArray


def ridge(gradients: Float32Array, update: Float32Array, mean: float, variance: float) -> Counts:
    """Counts of all `gradients` [n, P] in `update` [P], by ridge regression around `mean`; `variance` is that of a count.

    The ratio of noise to signal is the one that makes the update most likely (empirical Bayes), so it adapts to any amount of noise.
    The shrinkage is taken out again, so that an estimate is the count plus an error.
    """
    rest = update - mean * gradients.sum(0)
    values, vectors = np.linalg.eigh((gradients @ gradients.T).astype(np.float64))
    inside = values > SMALLEST_VALUE
    values, vectors = values[inside], vectors[:, inside]
    turned = vectors.T @ (gradients @ rest).astype(np.float64)
    outside = max(float(np.dot(rest, rest)) - float(np.sum(turned**2 / values)), 0.0)
    ratio = max(RATIOS, key=lambda r: _evidence(r, values, turned, outside, len(rest)))
    kept = np.maximum((vectors**2) @ (values / (values + ratio)), SMALLEST_VALUE)
    error = np.sqrt(variance * np.maximum(1 - kept, 0.0) / kept)
    return Counts(mean + vectors @ (turned / (values + ratio)) / kept, error)


def _evidence(ratio: float, values: FloatArray, turned: FloatArray, outside: float, size: int) -> float:
    """Log likelihood of the update, best scale put in, when noise has `ratio` times the variance of the counts."""
    quadratic = outside / ratio + float(np.sum(turned**2 / (values * (values + ratio))))
    determinant = float(np.sum(np.log(values + ratio))) + (size - len(values)) * math.log(ratio)
    return -0.5 * (size * math.log(max(quadratic, 1e-300)) + determinant)


def matched(products: Float32Array, squares: Float32Array) -> Counts:
    """Counts by inner product over squared length, for gradients that are orthogonal.

    The noise is measured from the estimates themselves: the median distance from the median, in units of C, which is the same for short
    and for long gradients.
    """
    lengths = np.sqrt(np.maximum(squares, SMALLEST_SQUARE).astype(np.float64))
    along = products / lengths
    told = along[lengths > LEAST_LENGTH] if (lengths > LEAST_LENGTH).any() else along
    spread = 1.4826 * float(np.median(np.abs(told - np.median(told))))
    return Counts(along / lengths, spread / lengths)


def log_ratios(counts: Counts, rate: float, steps: int) -> FloatArray:
    """Log likelihood of "in, drawn with `rate` in each of `steps` steps" over "out", [m]."""
    from scipy.stats import binom

    times = np.arange(steps + 1)
    chances = binom.logpmf(times, steps, rate)
    times, chances = times[chances > LEAST_LOG_CHANCE], chances[chances > LEAST_LOG_CHANCE]
    precision = 1 / np.maximum(counts.error, LEAST_ERROR)[:, None] ** 2
    exponents = chances + precision * (counts.estimate[:, None] * times - times**2 / 2)
    ratios: FloatArray = np.minimum(np.logaddexp.reduce(exponents, axis=1), MOST_A_ROUND)
    return ratios
