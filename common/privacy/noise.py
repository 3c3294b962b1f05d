# SPDX-License-Identifier: Apache-2.0
"""Integer Gaussian noise: the normal distribution rounded to whole grid steps, drawn exactly.

Added to an integer sum, it is as private as continuous Gaussian noise: rounding the noise and rounding the noisy sum give the same
integer, and rounding is post-processing. Floating point would break this twice, by the values it can reach and by its missing tail
(Mironov 2012; Jin et al. 2021, arXiv 2112.05307), so the sampler decides each integer without trusting it:

1. A sign bit and 63 bits u name the cell [u, u+1) * 2^-64 of the tail probability. The small side is used, so the tail is fine.
2. The normal quantile of the cell is computed in double precision with an error below `QUANTILE_ERROR` * (1 + x); x reaches 9.1 here.
3. Where cell and error lie within one integer, that integer is the answer. Elsewhere (about one value in 10^6) the uniform
   number gets 64 more bits, and as many again as it takes, and is compared with the exact boundary in 110-digit decimals.

So neither quantile nor rounding nor the 63 bits enter the error; what remains is `tail_mass`. How often step 3 happens depends on
the noise alone, never on the sum it is added to.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal, localcontext
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from common.aside import Aside
from common.errors import InputError
from common.privacy.generator import SystemGenerator
from common.privacy.normal_tail import DIGITS, upper_tail

NoiseArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

QUANTILE_ERROR: Final = 2.0**-48  # times (1 + x); measured 2^-51.7, and a test holds it to 2^-50
LARGEST_STANDARD_DEVIATION: Final = 2.0**36
_CHUNK: Final = 31_000  # stays in the processor's cache, and is so short that torch starts no threads of its own for it
_SIGN: Final = np.uint64(2**63)
_FINE_CELLS: Final = np.uint64(2**43)  # below this u a cell may be wide in x: decided in decimals
_CELL_ERROR: Final = 2.0**-43  # half a cell in x, where u >= 2^43: 2^-65 / density(x), and density(x) >= 0.79 * u * 2^-64
_CENTRE: Final = 2.0**-5  # tail probability above which erfinv is used, which is faster and exact enough there
_MOST_BITS: Final = 63 + 3 * 64


def tail_mass(count: int) -> float:
    """Bound on the total variation distance between `count` drawn integers and ideal ones, to be taken out of δ.

    A value can be wrong only when U, uniform on (0, 1/2), lies in the one cell of 2^-256 that holds a boundary and that 255 bits cannot
    split, or between a boundary and its computed value (below 10^-90 < 2^-298 away): an interval below 2^-255, of probability 2^-254.
    Fewer than 2^41 boundaries lie within 18 standard deviations of at most 2^36 units: 2^-213. Nothing is claimed beyond, which has
    probability below 2^-238. Together less than 2^-212 for a value.
    """
    return count * 2.0**-212


def rounded_gaussian(count: int, standard_deviation_units: float, generator: SystemGenerator) -> NoiseArray:
    """`count` independent draws of round(N(0, standard_deviation_units²)), int64 [count], in units of the grid step.

    A standard deviation of 0 gives zeros and draws nothing. Raises InputError above 2^36 units or below 0.
    """
    if not 0 <= standard_deviation_units <= LARGEST_STANDARD_DEVIATION:
        raise InputError(
            f"noise of {standard_deviation_units:g} grid steps cannot be drawn; the most is 2^36: use a coarser grid or less noise"
        )
    noise = np.zeros(count, dtype=np.int64)
    if standard_deviation_units > 0:
        parts = [noise[start : start + _CHUNK] for start in range(0, count, _CHUNK)]
        _draw_all(parts, standard_deviation_units, generator)
    return noise


def _draw_all(parts: list[NoiseArray], scale: float, generator: SystemGenerator) -> None:
    """Fill all parts, several at once where torch may use several threads; each takes its own words from the generator.

    Starting threads takes as long as a part, so each has at least two.
    """
    import torch

    rest = iter(parts)  # threads take from it in turns
    others = [Aside(partial(_draw_each, rest, scale, generator)) for _ in range(min(torch.get_num_threads(), len(parts) // 2) - 1)]
    _draw_each(rest, scale, generator)
    for other in others:
        other.result()


def _draw_each(parts: Iterator[NoiseArray], scale: float, generator: SystemGenerator) -> None:
    for part in parts:
        _draw(part, scale, generator)


def _draw(noise: NoiseArray, scale: float, generator: SystemGenerator) -> None:
    """Fill `noise`."""
    words = generator.words(len(noise))
    cells = words & ~_SIGN
    magnitude = normal_quantile((cells.astype(np.float64) + 0.5) * 2.0**-64)
    magnitude *= scale
    rounded = np.rint(magnitude)
    slack = scale * (6 * QUANTILE_ERROR + _CELL_ERROR)  # x < 5 where u >= 2^43
    np.abs(magnitude - rounded, out=magnitude)
    undecided = (magnitude >= 0.5 - slack) | (cells < _FINE_CELLS)
    for place in np.flatnonzero(undecided):
        rounded[place] = _decide(int(cells[place]), scale, generator)
    noise[:] = rounded
    negative = words.view(np.int64) >> 63  # -1 where the sign bit is set, else 0
    noise ^= negative
    noise -= negative


def normal_quantile(tail: FloatArray) -> FloatArray:
    """The x >= 0 with P(Z > x) = tail, for tail in (0, 1/2]; error below `QUANTILE_ERROR` * (1 + x)."""
    import torch

    quantile: FloatArray = torch.erfinv(torch.from_numpy(1 - 2 * tail)).numpy()
    quantile *= math.sqrt(2)
    rare = np.flatnonzero(tail < _CENTRE)
    quantile[rare] = -torch.special.ndtri(torch.from_numpy(tail[rare])).numpy()
    return quantile


def _decide(cell: int, scale: float, generator: SystemGenerator) -> int:
    """The integer for the uniform number that begins with the 63 bits `cell`, however many more bits it needs."""
    uniform = _LazyUniform(cell, generator)
    guess = float(normal_quantile(np.array([uniform.estimate()]))[0]) * scale
    nearest = max(round(guess), 0)
    with localcontext(prec=DIGITS):
        step = 1 / Decimal(scale)
        half = Decimal("0.5")
        while uniform.is_below(upper_tail((nearest + half) * step)):
            nearest += 1
        while nearest > 0 and not uniform.is_below(upper_tail((nearest - half) * step)):
            nearest -= 1
    return nearest


class _LazyUniform:
    """A uniform number in (0, 1/2) of which only as many bits are drawn as comparisons need."""

    def __init__(self, cell: int, generator: SystemGenerator) -> None:
        self._value, self._bits = cell, 63
        self._generator = generator
        self._extend()

    def _extend(self) -> None:
        self._value = (self._value << 64) | int(self._generator.words(1)[0])
        self._bits += 64

    def estimate(self) -> float:
        """The number in double precision."""
        return math.ldexp(self._value + 0.5, -self._bits - 1)

    def is_below(self, bound: Decimal) -> bool:
        """Whether the number is below `bound`, which lies in (0, 1/2)."""
        while True:
            position = int(bound * 2 ** (self._bits + 1))  # the cell in which the bound lies
            if position != self._value or self._bits >= _MOST_BITS:
                return self._value < position
            self._extend()
