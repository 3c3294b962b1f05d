# SPDX-License-Identifier: Apache-2.0
"""How much noise a study needs: from public numbers only, the same at every site.

The smallest noise multiplier with which the whole plan costs at most ε by pessimistic PLD. Two things are paid for on top:

- sensitivity: a patient moves the sum by at most `engines.sensitivity` * C, not C, so the noise that is drawn is larger by
  that factor than the noise that is accounted;
- the sampler: its distance η from ideal noise over all numbers of all steps costs (1 + e^ε) η of δ: η to leave the real mechanism for
  the ideal one, e^ε η to come back on the neighbour. It must be at most δ/100, together with the probability that a measured float
  error is larger than it looks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from common.errors import StudyError
from common.privacy.accountant import epsilon_pld, epsilon_rdp, poisson_gaussian
from common.privacy.engines import failure_mass, sensitivity
from common.privacy.grid import grid_step
from common.privacy.noise import tail_mass
from common.study import PatientPrivacy

LARGEST_NOISE_MULTIPLIER: Final = 1e4
SMALLEST_NOISE_MULTIPLIER: Final = 0.05
LARGEST_TAIL_SHARE: Final = 0.01
TOLERANCE: Final = 1e-3  # relative, of ε
MOST_EVALUATIONS: Final = 8  # three or four do; where δ alone nearly covers the plan, ε has no root to find


@dataclass(frozen=True)
class PrivacyPlan:
    """The mechanism of a study in public numbers. `epsilon` is what all `steps` cost at `delta`, at most `epsilon_target`.

    `noise_multiplier` * `clipping_norm` is the standard deviation that is drawn; `accounted_noise_multiplier` is that over the
    true sensitivity, and is what goes into the accountant. `grid_step` is γ.
    """

    noise_multiplier: float
    accounted_noise_multiplier: float
    sampling_rate: float
    steps: int
    epsilon: float
    epsilon_target: float
    delta: float
    clipping_norm: float
    grid_step: float
    parameter_count: int


def plan_privacy(privacy: PatientPrivacy, sampling_rate: float, steps: int, parameter_count: int) -> PrivacyPlan:
    """The plan for `steps` steps that each draw a patient with `sampling_rate`, for a model of `parameter_count` trained numbers.

    Raises StudyError when no sensible noise fits the study, with what to change.
    """
    spent_on_tail = (1 + math.exp(privacy.epsilon)) * tail_mass(parameter_count * steps) + failure_mass(privacy.engine, steps)
    if spent_on_tail > LARGEST_TAIL_SHARE * privacy.delta:
        raise StudyError(
            f"privacy.delta: {privacy.delta:g} is too small for {parameter_count} parameters and {steps} steps; use a larger one, "
            "or a smaller epsilon"
        )
    accounted, epsilon = _calibrate(privacy.epsilon, privacy.delta - spent_on_tail, sampling_rate, steps)
    return PrivacyPlan(
        noise_multiplier=accounted * sensitivity(privacy.engine, parameter_count),
        accounted_noise_multiplier=accounted,
        sampling_rate=sampling_rate,
        steps=steps,
        epsilon=epsilon,
        epsilon_target=privacy.epsilon,
        delta=privacy.delta,
        clipping_norm=privacy.clipping_norm,
        grid_step=grid_step(privacy.clipping_norm),
        parameter_count=parameter_count,
    )


@lru_cache(maxsize=256)
def _calibrate(epsilon: float, delta: float, sampling_rate: float, steps: int) -> tuple[float, float]:
    """Accounted noise multiplier and the ε it costs, in ((1 - TOLERANCE) * epsilon, epsilon]."""

    def rdp(noise: float) -> float:
        return epsilon_rdp([poisson_gaussian(sampling_rate, noise, steps)], delta)

    def pld(noise: float) -> float:
        return epsilon_pld([poisson_gaussian(sampling_rate, noise, steps)], delta)

    enough = _noise_by_rdp(rdp, epsilon)
    noise, spent = _refine(pld, epsilon, _round_up(enough))
    if noise > LARGEST_NOISE_MULTIPLIER:
        raise StudyError(
            f"privacy: ε={epsilon:g} for {steps} steps at sampling rate {sampling_rate:g} needs a noise multiplier of {noise:.3g}, "
            f"which leaves nothing to learn from (the most is {LARGEST_NOISE_MULTIPLIER:g}); raise epsilon, or lower rounds, local_steps "
            "or sampling_rate"
        )
    return noise, spent


def _noise_by_rdp(rdp: Callable[[float], float], epsilon: float) -> float:
    """A noise multiplier, to 2 %, with which already the Rényi bound is at most `epsilon`."""
    low, high = SMALLEST_NOISE_MULTIPLIER, 1.0
    while rdp(high) > epsilon:
        low, high = high, high * 4
        if low > LARGEST_NOISE_MULTIPLIER:
            return high
    while high > low * 1.02:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if rdp(middle) <= epsilon else (middle, high)
    return high


def _refine(pld: Callable[[float], float], epsilon: float, enough: float) -> tuple[float, float]:
    """The least noise multiplier, to TOLERANCE in ε, between half of `enough` and `enough`, and its ε; a secant in logs."""
    low, high, high_epsilon = enough / 2, enough, pld(enough)
    slope = 1.0  # -dlog ε / dlog noise; 1 for Gaussian noise and small ε
    for _ in range(MOST_EVALUATIONS):
        if high_epsilon >= epsilon * (1 - TOLERANCE):
            break
        guess = high * (high_epsilon / (epsilon * (1 - TOLERANCE / 2))) ** (1 / slope)
        guess = _round_up(min(max(guess, low * (high / low) ** 0.1), high * (low / high) ** 1e-4))
        found = pld(guess)
        if 0 < found != high_epsilon > 0:
            slope = min(max(math.log(found / high_epsilon) / math.log(high / guess), 0.3), 10.0)
        if found <= epsilon:
            high, high_epsilon = guess, found
        else:
            low = guess
    return high, high_epsilon


def _round_up(noise: float) -> float:
    """To six decimals, so that different machines agree."""
    return math.ceil(noise * 1e6) / 1e6
