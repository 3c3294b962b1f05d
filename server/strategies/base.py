# SPDX-License-Identifier: Apache-2.0
"""The contract of an aggregation algorithm.

A strategy decides one thing: how the mean of the sites' updates changes the global model (`apply`). It may declare what sites do
differently in local training; they read that from the study, never from a message. The round loop, checks, exact sums, weights,
time-outs and checkpoints are the framework's. A strategy object keeps nothing between calls: what it has to remember (a momentum, say) it
returns from `step`, and gets it back in the next round, from the checkpoint if the run was interrupted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from common.protocol import Arrays, FloatArray

AnyArray = npt.NDArray[np.generic]
Memory = Mapping[str, AnyArray]
"""What a strategy remembers from round to round, by name; numbers of any type."""


class Strategy(ABC):
    """One aggregation algorithm."""

    @abstractmethod
    def apply(self, model: Arrays, mean_update: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """The next global model from the present one and the mean update; same names and shapes, float32."""

    def step(self, model: Arrays, mean_update: Mapping[str, FloatArray], memory: Memory) -> tuple[dict[str, FloatArray], Memory]:
        """`apply`, with what the strategy remembers: `memory` is what it returned after the round before, empty in the first one."""
        return self.apply(model, mean_update), memory
