# SPDX-License-Identifier: Apache-2.0
"""What worker processes need, loaded in the background: begun before this process imports its own modules, the two go side by side."""

from __future__ import annotations

from common import child

WORKER_MODULES = ("client.workbench", "client.app", "common.models.cnn", "torch._dynamo")  # the first optimiser loads torch._dynamo
PRIVATE_WORKER_MODULES = ("client.private_trainer", "dp_accounting.pld", "dp_accounting.rdp")


def warm_up(private: bool) -> None:
    """Load once, for all workers to come: torch, and opacus only where it is used. Again: nothing happens."""
    child.preload(WORKER_MODULES + PRIVATE_WORKER_MODULES if private else WORKER_MODULES)
