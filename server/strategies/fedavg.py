# SPDX-License-Identifier: Apache-2.0
"""FedAvg (McMahan et al. 2017, arXiv 1602.05629): the global model moves by the mean of the sites' changes."""

from __future__ import annotations

from collections.abc import Mapping

from common.protocol import Arrays, FloatArray
from server.strategies.base import Strategy


class FedAvg(Strategy):
    """Weights are equal or public constants, never patient counts, so the mean is a function of released updates only."""

    def apply(self, model: Arrays, mean_update: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        """Add the mean update."""
        return {name: value + mean_update[name] for name, value in model.items()}
