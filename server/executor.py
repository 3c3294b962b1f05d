# SPDX-License-Identifier: Apache-2.0
"""The executor: takes ServerApp tasks from the SuperLink and runs each in a process of its own, resumes the runs whose ServerApp was lost,
and keeps Flower's nodes those of our sites.

Flower's own executor would put the task's token on the command line and run whatever the bundle holds. Here the token goes through a
file (0600) that the ServerApp removes as soon as it has read it, and only the installed `server.app` runs. A ServerApp outlives its
executor, not the coordinator: the next executor finds it at work.
"""

from __future__ import annotations

import argparse
import fcntl
import logging
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from common.errors import WardroundError
from common.flower_compat import control
from common.flower_compat.control import NotRunning
from common.flower_compat.tasks import TaskSource
from common.json_log import JsonLines
from common.stopping import stopped_by_signal
from server import authority
from server.home import ServerHome
from server.launch import bundle_sha256
from server.resuming import Resumer
from server.serverapps import ServerApps
from server.sites import APPROVED, REQUESTED, REVOKED

POLL_SECONDS = 0.2
IDLE_PAUSE_SECONDS = 1.0
GROWTH = 1.2
LONGEST_PAUSE_SECONDS = 5.0
SYNC_SECONDS = 5.0
LOCK_FILE = "executor.lock"
LOCK_POLL_SECONDS = 0.2
LOG = logging.getLogger("wardround.executor")


class Executor:
    """Runs the tasks of one SuperLink. `stopping` ends it, and the ServerApps with it."""

    def __init__(self, home: ServerHome, stopping: threading.Event) -> None:
        self._home, self._stopping = home, stopping
        self._apps = ServerApps(home, bundle_sha256())
        self._resumer = Resumer(home, self._apps)
        self._sync_at, self._is_synced = 0.0, False

    def run(self) -> None:
        """Until `stopping` is set."""
        source, pause = TaskSource(self._home), POLL_SECONDS
        try:
            while not self._stopping.wait(pause):
                pause = self._step(source, pause)
        finally:
            source.close()
            self._apps.stop_all()

    def _step(self, source: TaskSource, pause: float) -> float:
        """Take one task if there is one, and resume what was interrupted; returns how long to pause."""
        somebody_ended = self._apps.reap()
        try:
            task = source.acquire()
            if task is not None:
                self._apps.launch(task)
                pause = POLL_SECONDS
            self._apps.speak_for_those_that_start(source)
            self._resumer.look(now=somebody_ended)
        except NotRunning as error:
            LOG.warning("%s", error)
            self._is_synced = False
            return min(2 * pause, LONGEST_PAUSE_SECONDS)
        except WardroundError as error:
            LOG.error("%s", error)
            return LONGEST_PAUSE_SECONDS
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


def has_changes(home: ServerHome) -> bool:
    """Whether there is an approved site whose node is not registered, or a revoked one whose node is."""
    return any((site.node_id is None) == (site.status == APPROVED) for site in authority.registry(home).all() if site.status != REQUESTED)


def sync_nodes(home: ServerHome) -> None:
    """Register the node of each approved site that Flower does not know, and take off those of revoked ones. Raises NotRunning.

    An id that Flower has lost is forgotten first: the gateway lets nobody go online while the new one is not written down.
    """
    registered = {node.public_key: node.node_id for node in control.nodes(home)}
    for site in authority.registry(home).all():
        known = registered.get(site.node_key)
        if site.status == APPROVED and (known is None or site.node_id != known):
            authority.registry(home).set_node_id(site.name, None)
            authority.register_node(home, site)
        elif site.status == REVOKED:
            authority.unregister_node(home, site if known is None else replace(site, node_id=known))


@contextmanager
def _alone(home: ServerHome, stopping: threading.Event) -> Iterator[None]:
    """One executor at a time: the one of an `up` that was killed is waited for."""
    with (home.folder / LOCK_FILE).open("a") as file:
        while not stopping.is_set():
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                stopping.wait(LOCK_POLL_SECONDS)
        yield


def main(command_line: Sequence[str]) -> None:
    """Run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="server.executor")
    parser.add_argument("--home", required=True, type=Path)
    options = parser.parse_args(command_line)
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("httpx").setLevel(logging.WARNING)
    stopping = threading.Event()
    home = ServerHome.find(options.home)
    with stopped_by_signal(stopping), _alone(home, stopping):
        if not stopping.is_set():
            Executor(home, stopping).run()


if __name__ == "__main__":
    main(sys.argv[1:])
