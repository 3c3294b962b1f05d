# SPDX-License-Identifier: Apache-2.0
"""A coordinator turned hostile: it owns the server, the secret of its executor and every key of its folder, and sends what it likes.

It starts any bundle with any configuration, takes the ServerApp task itself (the real executor has to be paused, it would be quicker), and
speaks to the sites as the server of that run, or as the agent of an agent's run. What is left to stop it are the gateway, which it could
also change, and the sites.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import AcquireTaskRequest, PullTaskInputRequest, PushTaskOutputRequest
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.task_identity import TaskIdentity

from common.flower_compat.serverapp import FederationGrid
from common.flower_compat.superlink import CoordinatorHome, address
from common.flower_compat.tasks import TaskSource
from tests.common.flower_compat.attacker import start_run

TAKE_SECONDS = 20.0
SERVER_APP, AGENT_APP = str(TaskType.SERVER_APP), str(TaskType.AGENT_APP)


@dataclass(frozen=True)
class Rogue:
    """The server of one run of Flower's."""

    flower_run_id: int
    grid: FederationGrid

    def send(self, node_id: int, content: RecordDict, kind: str = "train", seconds: float = 180.0) -> RecordDict | None:
        """Send a message and wait for the answer's content; None when there is none in time, or only an error."""
        message = Message(content, node_id, kind, ttl=600.0)
        (identifier,) = self.grid.push_messages([message])
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for reply in self.grid.pull_messages([identifier]):
                if reply.metadata.reply_to_message_id == identifier:  # an agent also gets the prompt of its run
                    return None if reply.has_error() else reply.content
            time.sleep(0.05)
        return None


@contextmanager
def rogue_run(home: CoordinatorHome, bundle: bytes, config: Mapping[str, str], kind: str = TaskType.SERVER_APP) -> Iterator[Rogue]:
    """Start a run and be its server (or its agent, if the bundle is an agent's and `kind` says so) until the end of the block."""
    url, trust = f"https://{address(home)}", ssl.create_default_context(cafile=str(home.ca_certificate))
    flower_run_id = start_run(url, trust, bundle, dict(config), "" if kind == TaskType.SERVER_APP else "train for me")
    grid = FederationGrid(address(home), root_certificates=home.ca_certificate.read_bytes(), token=_take(home, flower_run_id, kind))
    heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(grid._runtime_client))
    heartbeat.start()
    try:
        answer = grid._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = answer.task_id, answer.run.run_id, answer.context.node_id
        grid.set_run(run_from_proto(answer.run))
        yield Rogue(flower_run_id, grid)
    finally:
        heartbeat.stop()
        grid._runtime_client.PushTaskOutput(PushTaskOutputRequest(sub_status=SubStatus.STOPPED, details="over"))
        grid.close()


def _take(home: CoordinatorHome, flower_run_id: int, kind: str) -> str:
    source = TaskSource(home)
    deadline = time.monotonic() + TAKE_SECONDS
    try:
        while time.monotonic() < deadline:
            answer = source._client.AcquireTask(AcquireTaskRequest(supported_task_types=[kind]))
            if answer.HasField("task") and int(answer.task.run_id) == flower_run_id:
                return str(answer.token)
            time.sleep(0.1)
    finally:
        source.close()
    raise AssertionError("the task of the run was not there; is the real executor paused?")
