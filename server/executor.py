# SPDX-License-Identifier: Apache-2.0
"""The executor: takes ServerApp tasks from the SuperLink and runs each in a process of its own; keeps Flower's nodes those of our sites.

Flower's own executor would put the task's token on the command line and run whatever the bundle holds. Here the token goes through a
file (0600) that the ServerApp removes as soon as it has read it, and only the installed `server.app` runs.
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO

from common.errors import ProtocolError, WardroundError
from common.flower_compat import control
from common.flower_compat.control import NotRunning
from common.flower_compat.superlink import address
from common.flower_compat.tasks import ServerTask, TaskSource
from common.stopping import stopped_by_signal
from server import authority, leashed
from server.home import HOME_VARIABLE, ServerHome
from server.launch import bundle_sha256
from server.sites import APPROVED, REQUESTED, REVOKED

POLL_SECONDS = 0.2
IDLE_PAUSE_SECONDS = 1.0
GROWTH = 1.2
LONGEST_PAUSE_SECONDS = 5.0
STOP_SECONDS = 8.0
SYNC_SECONDS = 5.0
SERVER_APP = "server.app"
LOG = logging.getLogger("wardround.executor")


def log_of(home: ServerHome, flower_run_id: int) -> Path:
    """Where the output of one ServerApp goes."""
    return home.logs / f"run-{flower_run_id}.log"


class Executor:
    """Runs the tasks of one SuperLink. `stopping` ends it, and what it has started with it."""

    def __init__(self, home: ServerHome, stopping: threading.Event) -> None:
        self._home, self._stopping = home, stopping
        self._tokens = home.folder / "tokens"
        self._bundle_sha256 = bundle_sha256()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._sync_at, self._is_synced = 0.0, False

    def run(self) -> None:
        """Until `stopping` is set."""
        self._tokens.mkdir(mode=0o700, exist_ok=True)
        for left in self._tokens.iterdir():
            left.unlink()
        source, pause = TaskSource(self._home), POLL_SECONDS
        try:
            while not self._stopping.wait(pause):
                pause = self._step(source, pause)
        finally:
            source.close()
            self._stop_all()

    def _step(self, source: TaskSource, pause: float) -> float:
        """Take one task if there is one; returns how long to pause."""
        self._reap()
        try:
            task = source.acquire()
        except NotRunning as error:
            LOG.warning("%s", error)
            self._is_synced = False
            return min(2 * pause, LONGEST_PAUSE_SECONDS)
        except ProtocolError as error:
            LOG.error("%s", error)
            return LONGEST_PAUSE_SECONDS
        if task is not None:
            self._launch(task)
            pause = POLL_SECONDS
        if time.monotonic() >= self._sync_at:
            self._sync()
        return min(GROWTH * pause, IDLE_PAUSE_SECONDS)

    def _sync(self) -> None:
        """Flower is asked only when something may have changed: a site of ours, or the SuperLink, which may have lost its database."""
        self._sync_at = time.monotonic() + SYNC_SECONDS
        try:
            if not self._is_synced or has_changes(self._home):
                sync_nodes(self._home)
                self._is_synced = True
        except WardroundError as error:
            LOG.error("nodes: %s", error)

    def _launch(self, task: ServerTask) -> None:
        token_file = self._write_token(task)
        arguments = ["--address", address(self._home), "--root-certificates", str(self._home.ca_certificate)]
        arguments += ["--token-file", str(token_file), "--bundle-sha256", self._bundle_sha256, "--app", SERVER_APP]
        with _append(log_of(self._home, task.flower_run_id)) as log:
            process = subprocess.Popen(
                leashed.command("common.flower_compat.serverapp", arguments),
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, HOME_VARIABLE: str(self._home.folder)},
                cwd=self._home.folder,
            )
        self._running[task.task_id] = process
        LOG.info("Flower run %d: started, process %d", task.flower_run_id, process.pid)

    def _write_token(self, task: ServerTask) -> Path:
        path = self._tokens / str(task.task_id)
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
            file.write(task.token)
        return path

    def _reap(self) -> None:
        for task_id, process in list(self._running.items()):
            if process.poll() is not None:
                LOG.info("process %d ended with code %s", process.pid, process.returncode)
                del self._running[task_id]
                (self._tokens / str(task_id)).unlink(missing_ok=True)

    def _stop_all(self) -> None:
        """Each ServerApp still tells the SuperLink that it was stopped; one that does not end in time is killed."""
        for process in self._running.values():
            process.terminate()
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._running.values():
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._reap()


def has_changes(home: ServerHome) -> bool:
    """Whether there is an approved site whose node is not registered, or a revoked one whose node is."""
    return any((site.node_id is None) == (site.status == APPROVED) for site in authority.registry(home).all() if site.status != REQUESTED)


def sync_nodes(home: ServerHome) -> None:
    """Register the node of each approved site that Flower does not know, and take off those of revoked ones. Raises NotRunning."""
    registered = {node.public_key: node.node_id for node in control.nodes(home)}
    for site in authority.registry(home).all():
        known = registered.get(site.node_key)
        if site.status == APPROVED and (known is None or site.node_id != known):
            authority.register_node(home, site)
        elif site.status == REVOKED:
            authority.unregister_node(home, site if known is None else replace(site, node_id=known))


def _append(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")


def main(command_line: Sequence[str]) -> None:
    """Run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="server.executor")
    parser.add_argument("--home", required=True, type=Path)
    options = parser.parse_args(command_line)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stopping = threading.Event()
    with stopped_by_signal(stopping):
        Executor(ServerHome.find(options.home), stopping).run()


if __name__ == "__main__":
    main(sys.argv[1:])
