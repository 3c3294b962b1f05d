# SPDX-License-Identifier: Apache-2.0
"""The identity that Flower stamps on each message: process-wide, so one run at a time in a process."""

from __future__ import annotations

from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SUPERLINK_NODE_ID = 1


def assume_server_identity(flower_run_id: int) -> None:
    """Let this process create messages of run `flower_run_id`, as the ServerApp of a real run would."""
    TaskIdentity.task_id = 1
    TaskIdentity.run_id = flower_run_id
    TaskIdentity.node_id = SUPERLINK_NODE_ID


def empty_run(flower_run_id: int) -> Run:
    """Flower's description of a run that has no bundle and no config."""
    return Run.create_empty(run_id=flower_run_id)
