# SPDX-License-Identifier: Apache-2.0
"""The one process of a hospital: a thread for the rounds, one for the chores, and the training process.

The main thread waits for SIGTERM or Ctrl-C and starts a thread again that ended by a fault of ours. At the end training is cut off and
answered with a code that says so, the node goes offline, and the state says "stopped". Back within half a minute, it is asked for that
round again; for longer, pause first and wait for the round to end.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from typing import Final, TextIO

import httpx

from client.answering import Desk
from client.chores import Chores
from client.connection_errors import unreachable
from client.coordinator import Coordinator, tls_context
from client.daemon_log import DaemonLog
from client.enrol import fetch_certificate
from client.link import CHECK, Link, Timing
from client.node import Node
from client.site_config import SiteConfig
from client.site_home import SiteHome
from client.site_log import log_failure
from client.site_worker import SITE_APP, SiteWorker
from client.status import Stage, StatusBoard, only_daemon
from common.crypto.site_keys import SiteKeys
from common.errors import CoordinatorUnreachable, InputError, WardroundError
from common.flower_compat.fleet import FleetConnection, NotWelcome, Unreachable
from common.listen import parse_listen
from common.memory import give_back_large_blocks
from common.protocol import RefusalCode
from common.stopping import stopped_by_signal

APPROVAL_POLL_SECONDS: Final = 5.0
SLOW_SECONDS: Final = 30.0
RESTART_SECONDS: Final = 5.0
STOP_SECONDS: Final = 20.0
WATCH_SECONDS: Final = 0.5


def serve(home: SiteHome, terminal: TextIO | None = None, app: str = SITE_APP) -> None:
    """Be this site's daemon until SIGTERM or Ctrl-C. For a main thread.

    Raises InputError when another daemon runs here; StorageError when the folder cannot be written.
    """
    with only_daemon(home):
        give_back_large_blocks()
        log = DaemonLog(home.logs, terminal, home.read_invitation().site)
        try:
            Daemon(home, log, app).run()
        finally:
            log.close()


class Daemon:
    """The parts of one daemon. The caller holds the lock of the folder."""

    def __init__(self, home: SiteHome, log: DaemonLog, app: str = SITE_APP) -> None:
        self._home = home
        self._log = log
        self._app = app
        self._board = StatusBoard(home, metadata.version("wardround"))
        self._stopping = threading.Event()
        self._node: Node | None = None
        self._url = ""

    def run(self) -> None:
        """Until a signal: wait for the approval, then take part."""
        with stopped_by_signal(self._stopping):
            self._log.write("started", {"site": self._home.read_invitation().site, "version": self._board.state.version})
            if self._board.leftover is not None:
                self._log.write("the daemon before this one ended without stopping")
            with self._metrics_served():
                if self._approved():
                    self._take_part()
        self._board.reach(Stage.STOPPED)
        self._log.write("stopped")

    @contextmanager
    def _metrics_served(self) -> Iterator[None]:
        """`/metrics` while the block runs, where site.yaml wants it; nothing that goes wrong with it stops anything."""
        try:
            listen = parse_listen(SiteConfig.read(self._home.config).metrics)
        except InputError as error:
            self._log.write("metrics", {"error": f"not served: {error}"})
            listen = None
        if listen is None:
            yield
            return
        from client.metrics import SiteMetrics
        from common.metrics_page import MetricsServer

        metrics = SiteMetrics(self._home, lambda: self._board.heard_at)
        server = MetricsServer(metrics.page(), listen, lambda text: self._log.write("metrics", {"said": text}))
        server.start()
        try:
            yield
        finally:
            server.stop()
            metrics.budget.stop()

    def _approved(self) -> bool:
        """Wait until there is a certificate; False when the daemon is stopped before."""
        with Coordinator(self._home) as coordinator:
            while not self._stopping.is_set():
                try:
                    is_there = fetch_certificate(self._home, coordinator, time.time())
                    self._board.heard()
                    if is_there:
                        return True
                    self._reach(Stage.WAITING)
                    wait = APPROVAL_POLL_SECONDS
                except CoordinatorUnreachable as error:
                    self._fail(Stage.UNREACHABLE, error)
                    wait = APPROVAL_POLL_SECONDS
                except WardroundError as error:
                    self._fail(Stage.NOT_WELCOME, error)
                    wait = SLOW_SECONDS
                self._stopping.wait(wait)
        return False

    def _take_part(self) -> None:
        self._board.reach(Stage.CONNECTING)
        chores = Chores(self._home, self._board, self._log, self._renewed)
        threads = {"node": self._run_node, "chores": lambda: chores.run(self._stopping)}
        alive = {name: self._start(name, target) for name, target in threads.items()}
        while not self._stopping.wait(WATCH_SECONDS):
            for name, thread in alive.items():
                if not thread.is_alive() and not self._stopping.wait(RESTART_SECONDS):
                    alive[name] = self._start(name, threads[name])
        self._end(alive["node"])

    def _run_node(self) -> None:
        worker = SiteWorker(self._app)
        link = Link(self._connect, self._board, self._log, self._explain, Timing())
        self._node = Node(link, Desk(self._home, worker, self._board), worker, self._board, self._log)
        if not self._stopping.is_set():
            self._node.run()

    def _end(self, node: threading.Thread) -> None:
        """Cut off what is being trained, let it be answered, go offline."""
        deadline = time.monotonic() + STOP_SECONDS
        while node.is_alive() and time.monotonic() < deadline:
            if self._node is not None:
                self._node.stop()
            node.join(WATCH_SECONDS)

    def _start(self, name: str, target: Callable[[], None]) -> threading.Thread:
        thread = threading.Thread(target=self._guarded, args=(name, target), name=f"wardround-{name}", daemon=True)
        thread.start()
        return thread

    def _guarded(self, name: str, target: Callable[[], None]) -> None:
        try:
            target()
        except Exception as error:  # noqa: BLE001 (the edge of a thread: the cause is logged here, and the thread is started again)
            log_failure(self._home.folder, RefusalCode.NOT_READY, error)
            self._log.write("fault", {"part": name, "error": type(error).__name__, "cause": "in site.log"})
            self._board.fail(f"a fault of ours in the part {name} ({type(error).__name__}); the cause is in {self._home.log}")

    def _connect(self) -> FleetConnection:
        self._url = SiteConfig.read(self._home.config).coordinator  # the coordinator may have moved since the invitation
        return FleetConnection(self._url, tls_context(self._home), SiteKeys.read(self._home.folder).node_key)

    def _explain(self, error: WardroundError) -> str:
        """A failed call in words that say what to do."""
        if isinstance(error, NotWelcome):
            return f"{error}; {CHECK}"
        if isinstance(error, Unreachable) and isinstance(error.__cause__, httpx.TransportError):
            return str(unreachable(self._home, self._url, error.__cause__))
        return str(error)

    def _renewed(self) -> None:
        if self._node is not None:
            self._node.renew()

    def _reach(self, stage: Stage) -> None:
        if self._board.state.stage is not stage:
            self._board.reach(stage)
            self._log.write(stage.value)

    def _fail(self, stage: Stage, error: WardroundError) -> None:
        if self._board.fail(str(error), stage):
            self._log.write(stage.value, {"error": str(error)})
