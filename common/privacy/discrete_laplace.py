# SPDX-License-Identifier: Apache-2.0
"""Discrete Laplace noise for counts, drawn exactly: P(k) = (1 - a) / (1 + a) * a^|k| with a = exp(-noise_parameter).

Added to a count that one patient changes by at most 1 it costs that patient ε = noise_parameter and δ = 0. The sampler is that of
Canonne, Kamath and Steinke (2020, arXiv 2004.00741), Algorithms 1 and 2: every decision compares integers that come from the operating
system's generator, so no rounding enters and the probabilities are exactly those above. How long a draw takes depends on the noise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from common.errors import InputError
from common.privacy.generator import SystemGenerator

CountArray = npt.NDArray[np.int64]
ONE = Fraction(1)


def noise_variance(noise_parameter: float) -> float:
    """Variance of one draw: 2a / (1 - a)²."""
    return 0.5 / math.sinh(noise_parameter / 2) ** 2


def discrete_laplace_noise(shape: Sequence[int], noise_parameter: float, generator: SystemGenerator) -> CountArray:
    """Independent draws, int64 of `shape`. The parameter is taken as the exact binary fraction that it is.

    Raises InputError unless it lies in [2^-20, 2^10].
    """
    if not 2.0**-20 <= noise_parameter <= 2.0**10:
        raise InputError(f"discrete Laplace noise: parameter {noise_parameter:g} is not between 2^-20 and 2^10; choose another epsilon")
    epsilon = Fraction(noise_parameter)
    drawn = [draw_discrete_laplace(epsilon, generator) for _ in range(math.prod(shape))]
    return np.array(drawn, dtype=np.int64).reshape(tuple(shape))


def draw_discrete_laplace(epsilon: Fraction, generator: SystemGenerator) -> int:
    """One draw with parameter `epsilon` > 0 (Algorithm 2, with scale t/s = 1/epsilon)."""
    s, t = epsilon.numerator, epsilon.denominator
    while True:
        u = draw_below(t, generator)
        if not draw_exponential_coin(Fraction(u, t), generator):
            continue
        v = 0
        while draw_exponential_coin(ONE, generator):
            v += 1
        magnitude = (u + t * v) // s
        negative = draw_below(2, generator) == 1
        if not (negative and magnitude == 0):
            return -magnitude if negative else magnitude


def draw_exponential_coin(x: Fraction, generator: SystemGenerator) -> bool:
    """True with probability exp(-x), for 0 <= x <= 1 (Algorithm 1)."""
    k = 1
    while draw_below(x.denominator * k, generator) < x.numerator:
        k += 1
    return k % 2 == 1


def draw_below(bound: int, generator: SystemGenerator) -> int:
    """A uniform integer in 0 … bound - 1, by rejection."""
    bits = (bound - 1).bit_length()
    while True:
        value = 0
        for word in generator.words(-(-bits // 64)):
            value = (value << 64) | int(word)
        value &= (1 << bits) - 1
        if value < bound:
            return value
