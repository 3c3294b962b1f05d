# SPDX-License-Identifier: Apache-2.0
"""The contract of an aggregation algorithm.

A strategy decides one thing: how the mean of the sites' updates changes the global model (`apply`). It may declare what sites do
differently in local training; they read that from the study, never from a message. The round loop, checks, exact sums, weights,
time-outs and checkpoints are the framework's. A strategy keeps no state of its own between calls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

from common.protocol import Arrays, FloatArray


class Strategy(ABC):
    """One aggregation algorithm."""

    @abstractmethod
    def apply(self, model: Arrays, mean_update: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """The next global model from the present one and the mean update; same names and shapes, float32."""
