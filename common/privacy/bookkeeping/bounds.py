# SPDX-License-Identifier: Apache-2.0
"""The public numbers of this engine's float arithmetic, and what they add to the sensitivity. Needs no torch."""

from __future__ import annotations

import math
from typing import Final

BLOCK: Final = 16
"""Patients that are added in float32 before double precision takes over."""
MOST_IN_FLOAT: Final = 1024
"""Patients of a step that may be added in floating point; further ones are added as integers."""
BLOCK_ERROR: Final = MOST_IN_FLOAT * BLOCK * 2.0**-24
"""Largest float error of all block sums of a step, in units of the clipping norm."""
LEAST_WEIGHTS: Final = 1 << 16
"""Layers with fewer weights always form per-patient gradients: their sum has a bound without measuring it."""
CERTIFIED_ERROR: Final = 2.0**-8
"""Largest float error of a certified sum, in units of the clipping norm."""


def float_slack(parameter_count: int) -> float:
    """Bound on how much float errors add to the distance between the sums of neighbouring data sets, in units of C.

    Errors of both sums count. Only a model of at least `LEAST_WEIGHTS` parameters can have a layer that needs a certificate. A patient
    who pushes another from the float part of a step into the integer part costs half a grid step more for each parameter.
    """
    certified = CERTIFIED_ERROR if parameter_count >= LEAST_WEIGHTS else 0.0
    return 2 * math.hypot(BLOCK_ERROR, certified) + 0.5 * math.sqrt(parameter_count) * 2.0**-20


def failure_mass(steps: int) -> float:
    """What `steps` certificates cost of δ: each may hide an error above `CERTIFIED_ERROR` * C with probability 2^-57, in two neighbours."""
    return steps * 2.0**-56
