# SPDX-License-Identifier: Apache-2.0
"""The integer grid of the mechanism, and how much one patient can move the sum on it.

Gradients are summed in whole multiples of the grid step γ = C * 2^-20, so that the noise can be added in integers. 2^-20 is the
coarsest step allowed: it costs γ√d, less than a thousandth of C up to a million parameters, and leaves four bits of a float32, so
that the clipped gradients of 15 patients add up without rounding (`common.privacy.clipping`).
"""

from __future__ import annotations

import math
from typing import Final

GRID_BITS: Final = 20
SUMMATION_SLACK: Final = 2.0**-17


def grid_step(clipping_norm: float, grid_bits: int = GRID_BITS) -> float:
    """γ = C * 2^-grid_bits."""
    return math.ldexp(clipping_norm, -grid_bits)


def relative_sensitivity(parameter_count: int) -> float:
    """Bound on how far adding or removing one patient moves the integer sum, in L2 norm and units of C: 1 + 2^-17 + √d * 2^-20.

    1 + 2^-17: a patient's norm is computed in float32 over blocks of 128 numbers and in float64 from there (relative error below
    2^-17.9), and scaling to the grid rounds twice in float32 (2^-22). √d * 2^-20 is γ√d, rounding to the grid: each of d integers
    moves by at most 1/2 when every patient is rounded, or by 1 when a sum is. Integers are summed exactly, in any order; what an
    engine that sums in floating point adds is its own (`engines.sensitivity`).
    """
    return 1.0 + SUMMATION_SLACK + math.sqrt(parameter_count) * 2.0**-GRID_BITS
