# SPDX-License-Identifier: Apache-2.0
"""The real commands as processes on this machine: run one to its end, or keep one in the background and stop it by its id.

A background process gets a session of its own, so Ctrl-C in a terminal reaches only the one who started it, who then stops the others in
order. Its output goes to a file, never into a pipe that nobody reads. One on a leash stops by itself when whoever started it is gone, even
by `kill -9`.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import WardroundError
from server import leashed

MODULES = {"wardround-server": "server.cli", "wardround-client": "client.cli"}
POLL_SECONDS = 0.05


class CommandFailed(WardroundError):
    """A command ended with another exit code than expected; the message has its output."""


@dataclass(frozen=True)
class Finished:
    """A command that ended: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object that `--json` printed."""
        return json.loads(self.out)


def command_line(program: str, *arguments: str | Path) -> list[str]:
    """How to start `wardround-server` or `wardround-client` with this Python, also where its script is not on the path."""
    return [sys.executable, "-m", MODULES[program], *map(str, arguments)]


def leashed_command_line(program: str, *arguments: str | Path) -> list[str]:
    """The same for a process that stops when its standard input ends; `Leash` gives it one."""
    return leashed.command(MODULES[program], [str(argument) for argument in arguments])


def run(program: str, *arguments: str | Path, expect: int | None = 0, timeout_seconds: float = 120.0, answer: str = "") -> Finished:
    """Run a command to its end; `answer` is typed into it. Raises CommandFailed unless it ends with `expect` (None: any code)."""
    done = subprocess.run(
        command_line(program, *arguments), input=answer, capture_output=True, text=True, timeout=timeout_seconds, env=environment()
    )
    finished = Finished(done.returncode, done.stdout, done.stderr)
    if expect is not None and finished.code != expect:
        shown = " ".join([program, *map(str, arguments)])
        raise CommandFailed(f"{shown}: exit code {finished.code}, expected {expect}\n{finished.out}{finished.err}")
    return finished


def run_to_end(command: list[str], changes: Mapping[str, str], folder: Path, timeout_seconds: float) -> str:
    """Run any command in `folder` to its end; its output. Raises CommandFailed."""
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout_seconds, env=environment(changes), cwd=folder
    )
    if done.returncode:
        raise CommandFailed(f"{' '.join(command)}: exit code {done.returncode}\n{done.stdout}")
    return done.stdout


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's environment without the folders that it may name; loopback never goes through a proxy."""
    own = {name: value for name, value in os.environ.items() if name not in ("WARDROUND_SERVER", "WARDROUND_SITE")}
    loopback = ",".join(filter(None, [own.get("NO_PROXY") or own.get("no_proxy"), "127.0.0.1", "localhost"]))
    return own | {"NO_PROXY": loopback, "no_proxy": loopback, "PYTHONUNBUFFERED": "1"} | dict(changes or {})


class Leash:
    """A pipe whose far end (`end`, a file descriptor) is the standard input of processes; it closes with this object, or this process."""

    def __init__(self) -> None:
        self.end, held = os.pipe()
        self.let_go = weakref.finalize(self, _close, self.end, held)
        """Close it: who hangs on it stops."""


def _close(*handles: int) -> None:
    for handle in handles:
        os.close(handle)


class Background:
    """A process in a session of its own; its output is in `log`, appended. With a `leash`, `command` is a `leashed_command_line`."""

    def __init__(
        self,
        command: list[str],
        log: Path,
        changes: Mapping[str, str] | None = None,
        folder: Path | None = None,
        leash: Leash | None = None,
    ) -> None:
        self.command = command
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL if leash is None else leash.end,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment(changes),
                cwd=folder,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """The exit code, None while it runs."""
        return self._process.poll()

    def stop(self, seconds: float = 30.0) -> int:
        """End it politely (SIGTERM), after `seconds` by force with all it started in its session; the exit code."""
        if self.code is None:
            self._process.terminate()
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)
            return self._process.wait(10)

    def finished(self, timeout_seconds: float) -> int:
        """Wait for its end; the exit code. Raises CommandFailed when it takes longer."""
        try:
            return self._process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise CommandFailed(f"{' '.join(self.command)}: not finished after {timeout_seconds:.0f} s\n{self.said}") from error

    @property
    def said(self) -> str:
        """What it printed so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60.0, alive: Background | None = None) -> None:
    """Wait until something is true. Raises CommandFailed after `seconds`, or as soon as the process `alive` has ended."""
    deadline = time.monotonic() + seconds
    while not condition():
        if alive is not None and alive.code is not None:
            raise CommandFailed(f"{what}: {' '.join(alive.command)} ended with exit code {alive.code}\n{alive.said}")
        if time.monotonic() > deadline:
            raise CommandFailed(f"{what}: not within {seconds:.0f} s" + (f"\n{alive.said}" if alive is not None else ""))
        time.sleep(POLL_SECONDS)


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on just now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]
    finally:
        for one in sockets:
            one.close()
