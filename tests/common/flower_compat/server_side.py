# SPDX-License-Identifier: Apache-2.0
"""The ServerApp's end of a run on a real SuperLink, in a test's own hands: start a run, take its task, send messages, read replies."""

from __future__ import annotations

import time

from flwr.app import Message, RecordDict
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import PullTaskInputRequest
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from common.flower_compat.control import build_bundle, start_run
from common.flower_compat.packing import unpacked
from common.flower_compat.superlink import CoordinatorHome, address
from common.flower_compat.tasks import TaskSource
from tests.common.flower_compat.loopback_link import PYPROJECT


class ServerSide:
    """A running run of which this process is the ServerApp."""

    def __init__(self, home: CoordinatorHome) -> None:
        self.flower_run_id = start_run(home, build_bundle({"pyproject.toml": PYPROJECT, "LICENSE": b"none\n"}), {"study": "{}"})
        source = TaskSource(home)
        task = source.acquire()
        source.close()
        assert task is not None and task.flower_run_id == self.flower_run_id
        self._grid = HttpGrid(address(home), root_certificates=home.ca_certificate.read_bytes(), token=task.token)
        answer = self._grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        self._grid.set_run(run_from_proto(answer.run))
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task.task_id, self.flower_run_id, 1

    def send(self, node_id: int, content: RecordDict) -> str:
        """Send a training message; returns its id."""
        return next(iter(self._grid.push_messages([Message(content, node_id, "train")])))

    def reply_to(self, message_id: str, seconds: float = 10.0) -> Message:
        """Wait for the reply to a message."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for found in self._grid.pull_messages([message_id]):
                found.content = unpacked(found.content)
                return found
            time.sleep(0.02)
        raise TimeoutError(message_id)

    def close(self) -> None:
        """Close the connection."""
        self._grid.close()
