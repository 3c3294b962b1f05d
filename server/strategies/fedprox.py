# SPDX-License-Identifier: Apache-2.0
"""FedProx (Li et al. 2020, arXiv 1812.06127): FedAvg whose sites are pulled towards the global model while they train.

The pull, mu (w - w_global) added to each gradient, happens at the sites (`client.trainer.Trainer.add_proximal_pull`), with mu from the
study; here aggregation is FedAvg's. With mu = 0 it is FedAvg, and a study may then not name it.
"""

from __future__ import annotations

from server.strategies.fedavg import FedAvg


class FedProx(FedAvg):
    """Aggregates as FedAvg does."""
