# SPDX-License-Identifier: Apache-2.0
"""Carrying out a schedule: find the process, kill it, and start a hospital's daemon again as its service manager would."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from dataclasses import replace

import psutil

from tests.bench.soak.books import Struck
from tests.bench.soak.schedule import Kill, Target
from tests.bench.soak.watch import role_of
from tests.support.federation import Federation

RESTART_SECONDS = 2.0
"""A little less than systemd's `RestartSec` in deploy/."""


class Killer:
    """Carries out the kills of a schedule on one federation. The caller says when a round begins and ends."""

    def __init__(self, federation: Federation, kills: list[Kill]) -> None:
        self._federation = federation
        self._left = sorted(kills, key=lambda kill: kill.round)
        self._restart_at: dict[str, float] = {}
        self._began = 0.0
        self._round = 0
        self.struck: list[Struck] = []

    @property
    def left(self) -> int:
        """Kills that were not done yet."""
        return len(self._left)

    def round_began(self, overall: int) -> None:
        """Round `overall` (counted over all runs) has begun, or begun again."""
        if overall != self._round:
            self._round, self._began = overall, time.monotonic()

    def round_done(self, when: float) -> None:
        """A round was done at `when` (seconds since the epoch): what was killed before has recovered."""
        self.struck = [
            replace(one, recovery_seconds=when - one.time) if one.recovery_seconds is None and one.time < when else one
            for one in self.struck
        ]

    def turn(self, run_id: str, round_number: int) -> Struck | None:
        """Start again what is due, and kill what is due; returns what was killed."""
        for name, at in list(self._restart_at.items()):
            if time.monotonic() >= at:
                self._federation.start_site(self._federation.hospitals[name])
                del self._restart_at[name]
        if not self._left or self._left[0].round > self._round:
            return None
        if self._left[0].round == self._round and time.monotonic() < self._began + self._left[0].delay_seconds:
            return None
        victim = self._find(self._left[0])
        return None if victim is None else self._strike(victim, run_id, round_number)

    def finish(self) -> None:
        """Start again whoever still waits for it."""
        for name in self._restart_at:
            self._federation.start_site(self._federation.hospitals[name])
        self._restart_at.clear()

    def _strike(self, pid: int, run_id: str, round_number: int) -> Struck | None:
        kill, self._left = self._left[0], self._left[1:]
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        if kill.target is Target.NODE:
            self._federation.sites[kill.site].finished(10)
            self._restart_at[kill.site] = time.monotonic() + RESTART_SECONDS
        self.struck.append(Struck(kill, time.time(), run_id, round_number, pid))
        return self.struck[-1]

    def _find(self, kill: Kill) -> int | None:
        """The process to kill; None while it does not run."""
        federation = self._federation
        if kill.site and kill.site in self._restart_at:
            return None
        if kill.target is Target.NODE:
            return federation.sites[kill.site].pid
        if kill.target is Target.WORKER:
            return _descendant(federation.sites[kill.site].pid, "worker")
        if kill.target is Target.SERVERAPP:
            return None if federation.server is None else _descendant(federation.server.pid, "serverapp")
        return self._child(kill.target.value)

    def _child(self, name: str) -> int | None:
        """A child of `wardround-server up`, by what `up` says."""
        try:
            facts = json.loads((self._federation.coordinator / "up.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        pid = facts["children"][name]["pid"]
        return int(pid) if pid else None


def _descendant(root: int, role: str) -> int | None:
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(root).children(recursive=True):
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if role_of(process) == role and process.status() != psutil.STATUS_ZOMBIE:
                    return int(process.pid)
    return None
