# SPDX-License-Identifier: Apache-2.0
"""Which strategy a study's name means. A new algorithm is one file beside this one and one line here."""

from __future__ import annotations

from common.study import Federation
from server.strategies.base import Strategy
from server.strategies.fedavg import FedAvg
from server.strategies.fedprox import FedProx

STRATEGIES: dict[str, type[Strategy]] = {"fedavg": FedAvg, "fedprox": FedProx}


def make_strategy(federation: Federation) -> Strategy:
    """The strategy of a study."""
    return STRATEGIES[federation.strategy]()
