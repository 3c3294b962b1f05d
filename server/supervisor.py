# SPDX-License-Identifier: Apache-2.0
"""`wardround-server up`: SuperLink, executor and gateway, watched, restarted when they die, and stopped together.

    SuperLink   Flower's server, on loopback
    executor    takes ServerApp tasks from it
    gateway     what the hospitals reach

The children share a process group of their own and hang on a leash (`server.leashed`): however this process ends, none of them is left. A
child that dies is started again, at once at first, later after up to half a minute. State in `up.json`, messages in `logs/up.log` (JSON
lines), output of each child in `logs/NAME.out.log`; all rotated.
"""

from __future__ import annotations

import fcntl
import http.client
import json
import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

from common.errors import InputError, RefusedError, StorageError
from common.files import write_atomic
from common.flower_compat import superlink
from common.json_log import JsonLines
from common.listen import parse_listen
from common.stopping import stopped_by_signal
from server.certificate_watch import CertificateWatch
from server.children import Child, ChildSpec, Group
from server.home import ServerHome

UP_FILE = "up.json"
LOCK_FILE = "up.lock"
SUPERLINK = "superlink"
TICK_SECONDS = 0.1
READY_SECONDS = 10.0
STARTING_SECONDS = 0.5
HEALTH_SECONDS = 3.0
STOP_SECONDS = 15.0
PORT_SECONDS = 15.0
HOLD_SECONDS = 1.0
MAX_LOG_BYTES = 10 << 20
OLD_LOGS = 5
NEEDED = ("ca_certificate", "certificate", "certificate_key", "superexec_secret", "coordinator_key", "study_public_key")


@dataclass(frozen=True)
class UpFile:
    """`up.json`. `state` is starting, ready or stopping; `children` maps a name to pid, restarts and since when it runs."""

    pid: int
    state: str
    started: float
    url: str
    children: dict[str, dict[str, int | float | None]]

    def write(self, path: Path) -> None:
        """Write it in one step."""
        write_atomic(path, json.dumps(vars(self), indent=1))

    @classmethod
    def read(cls, home: ServerHome) -> UpFile | None:
        """The state of the `up` that runs in this folder; None when none runs, or it has not written any yet."""
        if not is_held(home):
            return None
        try:
            return cls(**json.loads((home.folder / UP_FILE).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise StorageError(f"{home.folder / UP_FILE}: cannot be read ({error}); stop the coordinator and delete it") from error


def specs(home: ServerHome) -> list[ChildSpec]:
    """What runs, in the order in which it is started."""
    folder = str(home.folder)
    return [
        ChildSpec(SUPERLINK, "common.flower_compat.superlink", tuple(superlink.arguments(home))),
        ChildSpec("executor", "server.executor", ("--home", folder)),
        ChildSpec("gateway", "server.gateway", ("--home", folder)),
    ]


class Supervisor:
    """Keeps the children of one coordinator running until `stopping` is set."""

    def __init__(self, home: ServerHome, stopping: threading.Event, children: Sequence[ChildSpec] | None = None) -> None:
        self._home, self._stopping, self._started = home, stopping, time.time()
        self._specs = specs(home) if children is None else list(children)
        self._state = "starting"
        self._written = ""
        self._look_at = 0.0
        self._certificate = CertificateWatch(home)

    def run(self) -> None:
        """Start everything, watch it, and leave nothing behind. Raises InputError, RefusedError before anything is started."""
        check_folder(self._home)
        with held(self._home), log_to(self._home) as log:
            if (self._home.folder / UP_FILE).exists():  # of an `up` that was killed: what it says is over
                self._write([])
            check_ports(self._home)
            (self._home.folder / UP_FILE).unlink(missing_ok=True)
            self._written = ""
            group = Group(self._home.folder, child_environment(self._home))
            children = [Child(spec, group, log, child_log(self._home, spec.name)) for spec in self._specs]
            log.info("started, process %d", os.getpid())
            try:
                with metrics_served(self._home, log):
                    while not self._stopping.wait(TICK_SECONDS):
                        self._tick(children, log)
            finally:
                self._stop(children, group, log)

    def _tick(self, children: list[Child], log: logging.Logger) -> None:
        for child in children:
            child.watch()
        self._write(children)
        if time.monotonic() >= self._look_at:
            self._look(children, log)

    def _look(self, children: list[Child], log: logging.Logger) -> None:
        """Whether everything answers: that is what `ready` means. A new certificate needs a new SuperLink."""
        if self._certificate.has_new():
            for child in children:
                if child.spec.name == SUPERLINK:
                    child.restart(STOP_SECONDS, "the server has a new certificate")
        is_up = all(child.is_alive for child in children) and is_healthy(self._home)
        self._look_at = time.monotonic() + (READY_SECONDS if is_up else STARTING_SECONDS)
        state = "ready" if is_up else "starting"
        if state != self._state:
            self._state = state
            log.info("%s", state)

    def _stop(self, children: list[Child], group: Group, log: logging.Logger) -> None:
        """First who takes work, then who does it, last the SuperLink, which is told of every run's end; then whoever is left."""
        self._state = "stopping"
        self._write(children)
        for child in reversed(children):
            child.stop(STOP_SECONDS)
        left = group.end()
        if left:
            log.warning("killed what did not stop: %s", left)
        log.info("stopped")
        (self._home.folder / UP_FILE).unlink(missing_ok=True)

    def _write(self, children: list[Child]) -> None:
        """Say in `up.json` how things are. Where it cannot be written (disk full) the children are looked after all the same."""
        facts = {child.spec.name: child.facts for child in children}
        text = json.dumps([self._state, facts])
        if text != self._written:
            with suppress(StorageError):
                UpFile(os.getpid(), self._state, self._started, self._home.settings.url, facts).write(self._home.folder / UP_FILE)
                self._written = text


def is_healthy(home: ServerHome) -> bool:
    """Whether the gateway says that it and the SuperLink are well."""
    settings = home.settings
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(settings.listen_host, settings.listen_host)
    context = ssl.create_default_context(cafile=str(home.ca_certificate))
    context.check_hostname = False  # it may listen on an address that its certificate does not name; the authority is ours alone
    connection = http.client.HTTPSConnection(host, settings.listen_port, timeout=HEALTH_SECONDS, context=context)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def check_folder(home: ServerHome) -> None:
    """Raises InputError naming every file that is missing."""
    missing = [getattr(home, name).name for name in NEEDED if not getattr(home, name).exists()]
    if missing:
        raise InputError(f"{home.folder}: {', '.join(missing)} missing; run `wardround-server init` again, or restore the backup")


def check_ports(home: ServerHome, wait_seconds: float = PORT_SECONDS) -> None:
    """Both ports are free, or become so when what an `up` that was killed left behind has gone. Raises InputError naming each."""
    settings = home.settings
    wanted = {"superlink_port": (superlink.LOOPBACK, settings.superlink_port), "listen": (settings.listen_host, settings.listen_port)}
    deadline = time.monotonic() + (wait_seconds if (home.folder / UP_FILE).exists() else 0.0)
    while True:
        problems = [f"{name} of server.json: {problem}" for name, where in wanted.items() if (problem := _port_problem(*where))]
        if not problems:
            return
        if time.monotonic() >= deadline:
            raise InputError(problems)
        time.sleep(TICK_SECONDS)


def _port_problem(host: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family, reuse_port=False).close()
    except OSError as error:
        return f"cannot listen on {host}:{port} ({error.strerror or error}); stop what uses it, or change the port"
    return None


def child_environment(home: ServerHome) -> dict[str, str]:
    """The environment of the children: Flower keeps its files in the coordinator's folder."""
    return {**os.environ, "FLWR_HOME": str(home.folder / "flower"), "PYTHONUNBUFFERED": "1"}


def child_log(home: ServerHome, name: str) -> RotatingFileHandler:
    """Where a child's output goes."""
    handler = RotatingFileHandler(home.logs / f"{name}.out.log", maxBytes=MAX_LOG_BYTES, backupCount=OLD_LOGS, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


@contextmanager
def held(home: ServerHome, wait_seconds: float = HOLD_SECONDS) -> Iterator[None]:
    """The folder, for one `up` at a time; the lock ends with the process, so it is never stale. Raises RefusedError.

    Whoever looks whether it is held holds it for a moment, so it is tried for a while.
    """
    deadline = time.monotonic() + wait_seconds
    with (home.folder / LOCK_FILE).open("a") as file:
        while not _locked(file, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                raise RefusedError(
                    "ALREADY_UP", f"{home.folder}: a coordinator is running in this folder; `wardround-server status` shows it"
                )
            time.sleep(TICK_SECONDS)
        yield


def is_held(home: ServerHome) -> bool:
    """Whether an `up` runs in this folder."""
    with (home.folder / LOCK_FILE).open("a") as file:
        return not _locked(file, fcntl.LOCK_SH)


def _locked(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def log_to(home: ServerHome) -> Iterator[logging.Logger]:
    """A logger of JSON lines in `logs/up.log`."""
    home.logs.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = RotatingFileHandler(home.logs / "up.log", maxBytes=MAX_LOG_BYTES, backupCount=OLD_LOGS, encoding="utf-8")
    handler.setFormatter(JsonLines())
    log = logging.Logger("wardround.up", logging.INFO)
    log.addHandler(handler)
    try:
        yield log
    finally:
        handler.close()


@contextmanager
def metrics_served(home: ServerHome, log: logging.Logger) -> Iterator[None]:
    """`/metrics` while the block runs, where server.json wants it; nothing that goes wrong with it stops anything."""
    listen = parse_listen(home.settings.metrics_listen)
    if listen is None:
        yield
        return
    from common.metrics_page import MetricsServer
    from server.metrics import ServerMetrics

    server = MetricsServer(ServerMetrics(home).page(), listen, log.info)
    server.start()
    try:
        yield
    finally:
        server.stop()


def run_until_signal(home: ServerHome) -> None:
    """Run the supervisor until SIGTERM or SIGINT."""
    stopping = threading.Event()
    with stopped_by_signal(stopping):
        Supervisor(home, stopping).run()
