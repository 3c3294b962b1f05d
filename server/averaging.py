# SPDX-License-Identifier: Apache-2.0
"""Moving average of the global model over rounds (Polyak averaging): post-processing of released updates, free of privacy cost."""

from __future__ import annotations

import numpy as np

from common.protocol import Arrays, FloatArray


def moving_average(average: Arrays, model: Arrays, decay: float, round_number: int) -> dict[str, FloatArray]:
    """The average after `round_number` (1…): decay·average + (1 - decay)·model.

    The decay is warmed up to min(decay, (1 + t) / (10 + t)), so that the initial weights are soon forgotten. Decay 0 is the model itself.
    """
    warm = min(decay, (1 + round_number) / (10 + round_number))
    return {name: (warm * average[name] + (1 - warm) * value).astype(np.float32) for name, value in model.items()}
