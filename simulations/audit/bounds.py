# SPDX-License-Identifier: Apache-2.0
"""What the number of right guesses proves about ε: the one-run audit of Steinke, Nasr and Jagielski 2023 (arXiv 2305.08846).

m canaries are each in or out of the training data by a fair coin. An attacker guesses for r of them and is right v times. If training
is (ε, δ)-differentially private for adding or removing one canary, then (Theorem 5.2 with answers of ±1)

    P[right ≥ v]  ≤  f(v) + 2 m δ · max_{i = 1…v} (f(v - i) - f(v)) / i,      f(v) = P[Binomial(r, e^ε / (1 + e^ε)) ≥ v].

Where the right side is at most p, this ε is refuted at confidence 1 - p. The number of guesses must be chosen before the scores are
seen. A lower bound near 0 proves nothing by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import numpy as np

BISECTIONS: Final = 40
LARGEST_EPSILON: Final = 60.0
MOST_CANARIES: Final = 1 << 22


def p_value(canaries: int, guesses: int, right: int, epsilon: float, delta: float) -> float:
    """Bound on the chance of at least `right` right guesses of `guesses`, if the mechanism is (`epsilon`, `delta`)-private.

    Raises ValueError unless 0 <= right <= guesses <= canaries, 0 <= epsilon and 0 <= delta <= 1.
    """
    from scipy.stats import binom

    if not (0 <= right <= guesses <= canaries and epsilon >= 0 and 0 <= delta <= 1):
        raise ValueError(f"not an audit: {right} right of {guesses} guesses on {canaries} canaries, epsilon {epsilon}, delta {delta}")
    if right == 0:
        return 1.0
    wrong, chance = guesses - right, 1 / (1 + math.exp(epsilon))  # counted by wrong guesses: exact where nearly all are right
    tail = float(binom.cdf(wrong, guesses, chance))
    mean = guesses * chance
    furthest = min(right, math.ceil(mean + 40 * math.sqrt(mean) + 50))  # beyond, the sum grows no more and is divided by more
    more = np.arange(1, furthest + 1)
    slope = float(np.max((binom.cdf(wrong + more, guesses, chance) - tail) / more))
    return min(1.0, tail + 2 * canaries * delta * max(slope, 0.0))


def epsilon_lower_bound(canaries: int, guesses: int, right: int, delta: float, confidence: float) -> float:
    """The largest ε that is refuted at `confidence`; 0 if none is. Raises ValueError like `p_value`."""
    allowed = 1 - confidence
    if p_value(canaries, guesses, right, 0.0, delta) > allowed:
        return 0.0
    low, high = 0.0, 1.0
    while high < LARGEST_EPSILON and p_value(canaries, guesses, right, high, delta) <= allowed:
        low, high = high, high + 1
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if p_value(canaries, guesses, right, middle, delta) <= allowed else (low, middle)
    return low


def perfect_bound(canaries: int, guesses: int, delta: float, confidence: float) -> float:
    """The bound of an attack that is always right: the most that an audit of this size can prove."""
    return epsilon_lower_bound(canaries, guesses, guesses, delta, confidence)


def canaries_needed(epsilon: float, delta: float, confidence: float) -> int | None:
    """The fewest canaries with which a perfect attack refutes `epsilon`; None if no number does, because the term in δ is too large."""
    return _fewest(MOST_CANARIES, lambda count: p_value(count, count, count, epsilon, delta) <= 1 - confidence)


def guesses_needed(canaries: int, epsilon: float, delta: float, confidence: float) -> int | None:
    """The fewest guesses on `canaries` with which a perfect attack refutes `epsilon`; None if even guessing all does not."""
    return _fewest(canaries, lambda count: p_value(canaries, count, count, epsilon, delta) <= 1 - confidence)


def _fewest(most: int, is_enough: Callable[[int], bool]) -> int | None:
    """The smallest number in 1…most that is enough, by bisection; more than enough is enough."""
    if not is_enough(most):
        return None
    low, high = 0, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high
