# SPDX-License-Identifier: Apache-2.0
"""Every process of a soak, sampled: memory, file descriptors, zombies and orphans.

A process is ours when its environment has the marker, which children inherit; so one that lost its parent is still found. An orphan is a
process of ours that does not descend from this one and has nobody in its process group who does (a ServerApp outlives its executor and
stays in the group of `up`, which the next executor takes it over from). Killing a parent makes its children orphans for a moment, which is
no finding; what stays so is.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple

import psutil

MARKER = "WARDROUND_SOAK"
WARM_SECONDS, WARM_ROUNDS = 20.0, 15.0
"""The first seconds and rounds of a process are left out of its slope: it loads, and fills its caches and its pool of connections.

The SuperLink's pool takes a connection more whenever more calls than ever meet: nearly all in its first rounds, and then it stays as it is.
"""
FEWEST_ROUNDS = 20.0
"""Over fewer rounds, all processes of a kind together, nothing is said about growth."""
SETTLE_SECONDS = 20.0
ROLES = {
    "common.flower_compat.superlink": "superlink",
    "common.flower_compat.serverapp": "serverapp",
    "server.executor": "executor",
    "server.gateway": "gateway",
}
COMMANDS = {("server.cli", "up"): "up", ("client.cli", "start"): "node"}


class Point(NamedTuple):
    """One sample: the process's age in seconds, rounds done by all so far, memory in MB (RSS), open file descriptors."""

    age: float
    rounds: float
    megabytes: float
    descriptors: int


@dataclass(frozen=True)
class Growth:
    """Growth of one kind of process per 100 rounds, from so many samples of so many processes."""

    megabytes: float
    descriptors: float
    peak_megabytes: float
    points: int
    processes: int


@dataclass
class Watch:
    """Samples of the processes that carry `marker`; `rounds` at a sample is what the caller says."""

    marker: str
    series: dict[str, dict[tuple[int, float], list[Point]]] = field(default_factory=dict)
    zombies: dict[int, float] = field(default_factory=dict)
    orphans: dict[int, float] = field(default_factory=dict)
    reported: list[str] = field(default_factory=list)
    _known: dict[tuple[int, float], bool] = field(default_factory=dict)

    def sample(self, rounds: float) -> None:
        """Look at all processes once."""
        now, seen_zombies, seen_orphans = time.time(), set(), set()
        family = {os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))}
        groups = set(filter(None, map(_group, family)))
        for process in self.ours():
            with suppress(ProcessLookupError, psutil.NoSuchProcess, psutil.AccessDenied):
                if process.status() == psutil.STATUS_ZOMBIE:
                    seen_zombies.add(process.pid)
                    continue
                if process.pid not in family and os.getpgid(process.pid) not in groups:
                    seen_orphans.add(process.pid)
                self._note(process, now, rounds)
        self._remain(self.zombies, seen_zombies, now, "zombie")
        self._remain(self.orphans, seen_orphans, now, "orphan")

    def ours(self) -> list[psutil.Process]:
        """The processes with the marker, and those that had it when they were last alive."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            key = (process.pid, process.create_time())
            if key not in self._known:
                found = process.environ().get(MARKER) == self.marker
                if not found and time.time() - key[1] < SETTLE_SECONDS:
                    return False  # it may not have become what it will be
                self._known[key] = found
            return self._known[key]
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False

    def _note(self, process: psutil.Process, now: float, rounds: float) -> None:
        with process.oneshot():
            role = role_of(process)
            key = (process.pid, process.create_time())
            point = Point(now - key[1], rounds, process.memory_info().rss / 1e6, process.num_fds())
        if role:
            self.series.setdefault(role, {}).setdefault(key, []).append(point)

    def _remain(self, since: dict[int, float], seen: set[int], now: float, what: str) -> None:
        """Keep only those that are still so; report those that stay."""
        for pid in set(since) - seen:
            del since[pid]
        for pid in seen:
            first = since.setdefault(pid, now)
            text = f"{what}: process {pid}, {_command(pid)}"
            if now - first >= SETTLE_SECONDS and text not in self.reported:
                self.reported.append(text)


def role_of(process: psutil.Process) -> str:
    """What a process is to us; "" for commands that come and go."""
    words = process.cmdline()
    if any("multiprocessing.forkserver" in word for word in words):
        parent = process.parent()
        return "worker" if parent is not None and "forkserver" in " ".join(parent.cmdline()) else "fork server"
    for module, role in ROLES.items():
        if module in words:
            return role
    return next((role for (module, command), role in COMMANDS.items() if module in words and command in words), "")


def growth(series: Mapping[tuple[int, float], Sequence[Point]]) -> Growth | None:
    """Growth of one kind of process; None when its processes, past their first seconds and rounds, saw too few rounds."""
    warm = [list(_warm(points)) for points in series.values()]
    warm = [points for points in warm if len(points) > 1]
    if sum(points[-1].rounds - points[0].rounds for points in warm) < FEWEST_ROUNDS:
        return None
    megabytes = slope([[(point.rounds, point.megabytes) for point in points] for points in warm])
    descriptors = slope([[(point.rounds, float(point.descriptors)) for point in points] for points in warm])
    peak = max(point.megabytes for points in warm for point in points)
    return Growth(100 * megabytes, 100 * descriptors, peak, sum(map(len, warm)), len(warm))


def _warm(points: Sequence[Point]) -> Iterator[Point]:
    return (point for point in points if point.age >= WARM_SECONDS and point.rounds >= points[0].rounds + WARM_ROUNDS)


def slope(groups: Iterable[Sequence[tuple[float, float]]]) -> float:
    """Least-squares slope of y over x common to all groups, each of which has a level of its own; 0 where x never changes."""
    products, squares = 0.0, 0.0
    for group in groups:
        middle_x = sum(x for x, _ in group) / len(group)
        middle_y = sum(y for _, y in group) / len(group)
        products += sum((x - middle_x) * (y - middle_y) for x, y in group)
        squares += sum((x - middle_x) ** 2 for x, _ in group)
    return products / squares if squares else 0.0


def _group(pid: int) -> int | None:
    with suppress(ProcessLookupError):
        return os.getpgid(pid)
    return None


def _command(pid: int) -> str:
    try:
        return " ".join(psutil.Process(pid).cmdline())[-120:] or "no command line"
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return "gone"
