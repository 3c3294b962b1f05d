# SPDX-License-Identifier: Apache-2.0
"""Child processes that are kept running: one process group for all, a leash to this process, restart with back-off."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO

from common.json_log import as_json_line
from server import leashed

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
STEADY_SECONDS = 60.0
"""A child that lived so long has not just failed to start: the next pause is the first again."""
GROUP_SECONDS = 10.0
KILL_SECONDS = 5.0


@dataclass(frozen=True)
class ChildSpec:
    """A module to run with its arguments."""

    name: str
    module: str
    arguments: tuple[str, ...]


class Group:
    """The process group of all children, and the pipe that they hang on. Children are started in `folder` with `environment`."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder, self._environment = folder, environment
        self._reading, self._writing = os.pipe()
        self._group: int | None = None

    def start(self, spec: ChildSpec) -> subprocess.Popen[bytes]:
        """Start a child; its output is a pipe."""
        if self._group is not None and not members(self._group):
            self._group = None
        try:
            process = self._popen(spec, self._group or 0)
        except (PermissionError, ProcessLookupError, subprocess.SubprocessError):
            if self._group is None:
                raise
            self._group = None  # its last member has gone since we looked
            process = self._popen(spec, 0)
        self._group = self._group or process.pid
        return process

    def end(self, grace_seconds: float = GROUP_SECONDS) -> list[int]:
        """Tell whoever is left to stop, then kill; returns who had to be killed. The group cannot be used any more."""
        os.close(self._writing)
        os.close(self._reading)
        if self._group is None or not self._signal(signal.SIGTERM):
            return []
        if self._is_gone_within(grace_seconds):
            return []
        left = members(self._group)
        self._signal(signal.SIGKILL)
        self._is_gone_within(KILL_SECONDS)
        return left

    def _popen(self, spec: ChildSpec, group: int) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            leashed.command(spec.module, spec.arguments),
            stdin=self._reading,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self._environment,
            cwd=self._folder,
            process_group=group,
        )

    def _signal(self, number: signal.Signals) -> bool:
        """Send a signal to the group; whether there was anybody."""
        if self._group is None or not members(self._group):
            return False
        with suppress(ProcessLookupError):
            os.killpg(self._group, number)
        return True

    def _is_gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self._group is not None and members(self._group):
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.05)
        return True


class Child:
    """One child: `watch` starts it, and starts it again when it has died and its pause is over."""

    def __init__(self, spec: ChildSpec, group: Group, log: logging.Logger, output: RotatingFileHandler) -> None:
        self.spec = spec
        self._group, self._log, self._output = group, log, output
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._started, self._start_at, self._pause = 0.0, 0.0, FIRST_PAUSE_SECONDS
        self._since: float | None = None
        self._restarts = 0

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def facts(self) -> dict[str, int | float | None]:
        """For `up.json`."""
        process = self._process
        return {"pid": None if process is None else process.pid, "restarts": self._restarts, "since": self._since}

    def watch(self) -> None:
        """Start it if it is time to."""
        if self._process is not None and not self.is_alive:
            self._note_death(self._process)
        if self._process is None and time.monotonic() >= self._start_at:
            self._start()

    def restart(self, seconds: float, why: str) -> None:
        """Stop it as `stop` does; the next `watch` starts it again."""
        self._log.info("%s: stopped, to be started again: %s", self.spec.name, why)
        self._end(seconds)
        self._start_at, self._since = 0.0, None
        self._restarts += 1

    def stop(self, seconds: float) -> None:
        """Tell it to stop, wait so long, kill it."""
        self._end(seconds)
        if self._reader is not None:
            self._reader.join(1.0)
        self._output.close()

    def _end(self, seconds: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            self._log.warning("%s: did not stop in %.0f s, killed", self.spec.name, seconds)
            process.kill()
            process.wait()

    def _start(self) -> None:
        process = self._group.start(self.spec)
        self._process, self._started, self._since = process, time.monotonic(), time.time()
        self._reader = threading.Thread(target=self._copy_output, args=(process.stdout,), name=self.spec.name, daemon=True)
        self._reader.start()
        self._log.info("%s: started, process %d", self.spec.name, process.pid)

    def _note_death(self, process: subprocess.Popen[bytes]) -> None:
        if time.monotonic() - self._started >= STEADY_SECONDS:
            self._pause = FIRST_PAUSE_SECONDS
        self._log.error("%s: ended with code %s, starts again in %.1f s", self.spec.name, process.returncode, self._pause)
        self._process, self._since = None, None
        self._start_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        self._restarts += 1

    def _copy_output(self, output: IO[bytes]) -> None:
        with output:
            for line in output:
                text = as_json_line(line.decode("utf-8", "replace").rstrip("\n"), time.time(), child=self.spec.name)
                self._output.handle(logging.LogRecord(self.spec.name, logging.INFO, "", 0, text, None, None))


def members(group: int) -> list[int]:
    """Processes of a group that are not dead; where there is no /proc, the group itself as long as anybody is in it."""
    proc = Path("/proc")
    if not (proc / "self" / "stat").exists():
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return []
        return [group]
    found = []
    for folder in proc.iterdir():
        if not folder.name.isdecimal():
            continue
        with suppress(OSError):
            state, _, its_group = (folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                found.append(int(folder.name))
    return found
