# SPDX-License-Identifier: Apache-2.0
"""The server's end of a run on a real SuperLink, as Flower itself would have it, in a test's own hands."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from flwr.app import Message, RecordDict
from flwr.common.serde import run_from_proto
from flwr.proto.runtime_pb2 import PullTaskInputRequest
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.task_identity import TaskIdentity

from common.flower_compat import control, superlink
from common.flower_compat.serverapp import FederationGrid
from common.flower_compat.superlink import CoordinatorHome
from common.flower_compat.tasks import TaskSource

PYPROJECT = b"""\
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "test-run"
version = "1.0.0"
description = "No code."
license = { file = "LICENSE" }
dependencies = ["flwr>=1.41.0"]
[tool.flwr.app]
publisher = "tests"
fab-format-version = 1
flwr-version-target = "1.41.0"
[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "client.app:app"
[tool.flwr.app.config]
study = ""
signature = ""
"""


@dataclass
class ServerEnd:
    """What a ServerApp can do."""

    flower_run_id: int
    grid: FederationGrid
    heartbeat: HeartbeatSender | None = None

    def begin(self) -> None:
        client = self.grid._runtime_client
        self.heartbeat = HeartbeatSender(make_task_heartbeat_fn_http(client))
        self.heartbeat.start()
        task = client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = task.task_id, task.run.run_id, task.context.node_id
        self.grid.set_run(run_from_proto(task.run))

    def send(self, records: RecordDict, node_id: int, kind: str = "train", ttl: float = 120.0) -> str:
        """Send a message; its id."""
        return next(iter(self.grid.push_messages([Message(records, node_id, kind, ttl=ttl)])))

    def reply(self, message_id: str, seconds: float = 30.0) -> Message:
        """The reply to a message."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for message in self.grid.pull_messages([message_id]):
                return message
            time.sleep(0.02)
        raise AssertionError(f"no reply within {seconds} s")

    def ask(self, records: RecordDict, node_id: int, kind: str = "train", seconds: float = 30.0) -> Message:
        """Send a message and wait for its reply."""
        return self.reply(self.send(records, node_id, kind), seconds)

    def close(self) -> None:
        if self.heartbeat is not None and self.heartbeat.is_running:
            self.heartbeat.stop()
        self.grid.close()


def bundle() -> bytes:
    """A bundle that Flower takes; no code of it is ever run."""
    return control.build_bundle({"pyproject.toml": PYPROJECT, "LICENSE": b"x\n"})


@contextmanager
def begun_run(home: CoordinatorHome, content: bytes, config: Mapping[str, str]) -> Iterator[ServerEnd]:
    """A run that was started with this bundle and configuration, and its server's end; stopped when the block ends."""
    flower_run_id = control.start_run(home, content, config)
    source = TaskSource(home)
    task = source.acquire()
    source.close()
    assert task is not None and task.flower_run_id == flower_run_id
    grid = FederationGrid(superlink.address(home), root_certificates=home.ca_certificate.read_bytes(), token=task.token)
    end = ServerEnd(flower_run_id, grid)
    try:
        end.begin()
        yield end
    finally:
        end.close()
        control.stop_run(home, flower_run_id)
