# SPDX-License-Identifier: Apache-2.0
"""Exact sums of updates: 64-bit fixed point with a public scale and a checked range.

A float sum depends on the order of its terms; an integer sum does not. So a round gives the same model whichever site answers first,
memory is one array a tensor however many sites there are, and the same encoding can later be masked for secure aggregation.

A value v becomes round(v · 2^32). With |v| below 2^20 and at most 1,024 terms no sum can overflow: 2^20 · 2^32 · 2^10 < 2^63.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import numpy as np
import numpy.typing as npt

from common.errors import ProtocolError
from common.protocol import Arrays, FloatArray, Shapes

SCALE = float(1 << 32)
VALUE_LIMIT = float(1 << 20)
MAX_TERMS = 1 << 10
WEIGHT_UNITS = 1 << 20
CHUNK_VALUES = 1 << 15
"""Values that are encoded at once: what is computed on the way stays in the processor's cache, whatever the size of a tensor."""


def encode(values: FloatArray, weight: float = 1.0) -> npt.NDArray[np.int64]:
    """Fixed-point form of `weight · values`, same shape. Raises ProtocolError when a value is outside the range."""
    check_range(values, weight)
    return _encoded(values, weight)


def check_range(values: FloatArray, weight: float = 1.0) -> None:
    """Raise ProtocolError when a value of `weight · values` is outside the range, or not a number."""
    lowest, highest = float(values.min(initial=0.0)), float(values.max(initial=0.0))
    largest = max(abs(lowest), abs(highest)) * weight
    if not (largest < VALUE_LIMIT and lowest <= highest):  # NaN compares false with everything
        raise ProtocolError(f"an update holds a value of {largest:.3g}; the range of the exact sum ends at {VALUE_LIMIT:.0f}")


def decode(total: npt.NDArray[np.int64], divisor: float) -> FloatArray:
    """The float32 value of `total / divisor`."""
    return np.divide(total, SCALE * divisor).astype(np.float32)


def l2_norm(arrays: Arrays) -> float:
    """Joint L2 norm of all tensors, in float64: float32 values of any size cannot overflow it.

    Without BLAS, whose threads wait for each other by spinning: beside processes that are at work a product takes several times as long.
    """
    squares = 0.0
    for array in arrays.values():
        flat = array.reshape(-1)
        for part in _chunks(flat.size):
            exact = flat[part].astype(np.float64)
            squares += float(np.square(exact, out=exact).sum())
    return sqrt(squares)


def _encoded(values: FloatArray, weight: float) -> npt.NDArray[np.int64]:
    exact = np.multiply(values, weight * SCALE, dtype=np.float64)  # the scale is a power of two: as if multiplied one after the other
    return np.rint(exact, out=exact).astype(np.int64)


def _chunks(size: int) -> Iterator[slice]:
    return (slice(start, start + CHUNK_VALUES) for start in range(0, size, CHUNK_VALUES))


class FixedPointSum:
    """A running, exact, weighted sum of updates that all have `shapes`. Weights are whole numbers of 1/`WEIGHT_UNITS`."""

    def __init__(self, shapes: Shapes) -> None:
        self._totals = {name: np.zeros(shape, np.int64) for name, shape in shapes.items()}
        self._weight_units = 0
        self.terms = 0

    def add(self, arrays: Arrays, weight_units: int = WEIGHT_UNITS) -> None:
        """Add one update with a public weight of 1…`WEIGHT_UNITS`. All or nothing: a bad value leaves the sum as it was."""
        if not 1 <= weight_units <= WEIGHT_UNITS:
            raise ValueError(f"weight of {weight_units} units is not in 1…{WEIGHT_UNITS}; divide public weights by the largest")
        if self.terms >= MAX_TERMS:
            raise ProtocolError(f"more than {MAX_TERMS} updates in one sum; the range of 64 bits is not safe beyond")
        weight = weight_units / WEIGHT_UNITS
        for name in self._totals:
            check_range(arrays[name], weight)
        for name, total in self._totals.items():
            sums, values = total.reshape(-1), arrays[name].reshape(-1)
            for part in _chunks(values.size):
                sums[part] += _encoded(values[part], weight)
        self._weight_units += weight_units
        self.terms += 1

    def mean(self) -> dict[str, FloatArray]:
        """The weighted mean, float32."""
        if self.terms == 0:
            raise ValueError("the mean of no update does not exist")
        divisor = self._weight_units / WEIGHT_UNITS
        return {name: _decoded(total, divisor) for name, total in self._totals.items()}


def _decoded(total: npt.NDArray[np.int64], divisor: float) -> FloatArray:
    """`decode` piece by piece."""
    values = np.empty(total.shape, np.float32)
    sums, flat = total.reshape(-1), values.reshape(-1)
    for part in _chunks(sums.size):
        flat[part] = decode(sums[part], divisor)
    return values
