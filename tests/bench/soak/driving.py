# SPDX-License-Identifier: Apache-2.0
"""A soak: several runs of short rounds in one real federation, while its processes are killed by a seeded schedule.

Nobody helps: a run that was cut off has to go on by itself. Where one does not, `wardround-server resume` is typed as a coordinator would,
and counted, because that is a finding.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from common.events import Event, parse_event
from common.study import Study
from simulations.processes import Background, CommandFailed
from tests.bench.soak.books import Window
from tests.bench.soak.killing import Killer
from tests.bench.soak.schedule import schedule
from tests.bench.soak.watch import MARKER, Watch
from tests.support.federation import HONEST, Federation, start_federation

TICK_SECONDS = 0.05
SAMPLE_SECONDS = 2.0
STUCK_SECONDS = 180.0
TOO_FEW = "updates, the study needs"
END_SECONDS = 60.0
GONE_SECONDS = 30.0
STEPS_OF_A_ROUND = 4
QUIET_ROUNDS = 2
"""The last rounds, in which nothing is killed: what was killed before has to be seen to recover."""


@dataclass(frozen=True)
class Options:
    """So many rounds in so many runs with so many kills, within so many minutes; `seed` gives the schedule."""

    rounds: int = 200
    runs: int = 5
    kills: int = 40
    seed: int = 1
    minutes: float = 30.0

    def rounds_of(self, run: int) -> int:
        """Rounds of run `run` (from 0): as equal as they can be."""
        return self.rounds * (run + 1) // self.runs - self.rounds * run // self.runs


class Tail:
    """Reads a run's event file as it grows; a line that is being written waits."""

    def __init__(self, path: Path) -> None:
        self._path, self._position = path, 0

    def news(self) -> Iterator[Event]:
        """The events since the last call."""
        if self._path.exists():
            with self._path.open("rb") as file:
                file.seek(self._position)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self._position += len(line)
                    yield parse_event(line.decode())


@dataclass
class Driver:
    """Runs the runs and notes what happened. `tell` gets a line for each kill and run."""

    options: Options
    federation: Federation
    killer: Killer
    watch: Watch
    tell: Callable[[str], None]
    windows: dict[tuple[str, int], Window] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    """Rounds of each run by its id."""
    helped: list[str] = field(default_factory=list)
    """What was resumed by hand because a round had brought too few updates: a decision, which a human answers."""
    problems: list[str] = field(default_factory=list)
    _began: dict[tuple[str, int], float] = field(default_factory=dict)
    _round: int = 0
    _done: set[tuple[str, int]] = field(default_factory=set)
    _is_over: bool = False
    _heard: float = 0.0
    _sample_at: float = 0.0

    def run(self, deadline: float) -> None:
        """All runs, until `deadline` (monotonic seconds) at the latest."""
        for number in range(self.options.runs):
            if time.monotonic() >= deadline:
                self.problems.append(f"out of time: {number} of {self.options.runs} runs were begun")
                return
            self._train(number, deadline)

    def _train(self, number: int, deadline: float) -> None:
        started, run_id = self._begin(number)
        tail = Tail(self.federation.coordinator / "runs" / run_id / "events.jsonl")
        before = sum(self.options.rounds_of(earlier) for earlier in range(number))
        self._is_over, self._round, self._heard = False, 0, time.monotonic()
        while not self._is_over:
            if time.monotonic() >= deadline:
                self.problems.append(f"out of time in round {self._round} of run {run_id[:8]}")
                self.federation.on_server("stop", run_id, expect=None)
                return
            for event in tail.news():
                self._hear(event, run_id, before)
            self._turn(run_id)
            started = self._help(started, run_id)
            time.sleep(TICK_SECONDS)
        self._end(started, run_id)

    def _begin(self, number: int) -> tuple[Background, str]:
        study = small_study(self.options.rounds_of(number), number)
        started = self.federation.begin(study, HONEST)
        rows = self.federation.rows("SELECT run_id FROM offer WHERE study_id = ?", study.id)
        run_id = str(rows[0]["run_id"])
        self.runs[run_id] = study.federation.rounds
        self.tell(f"run {number + 1} of {self.options.runs}: {run_id[:8]}, {study.federation.rounds} rounds")
        return started, run_id

    def _hear(self, event: Event, run_id: str, before: int) -> None:
        self._heard = time.monotonic()
        number = event.facts.get("round")
        if event.name == "round_started" and isinstance(number, int):
            self._round = number
            self._began.setdefault((run_id, number), event.time)
            self.killer.round_began(before + number)
        elif event.name == "round_done" and isinstance(number, int):
            self._done.add((run_id, number))
            self.windows[run_id, number] = Window(self._began.get((run_id, number), event.time), event.time)
            self.killer.round_done(event.time)
        elif event.name == "rounds_finished":
            self.killer.round_done(event.time)
            self._is_over = True

    def _turn(self, run_id: str) -> None:
        struck = self.killer.turn(run_id, self._round)
        if struck is not None:
            self.tell(f"round {struck.round}: killed {struck.kill.victim}, process {struck.pid}")
        if time.monotonic() >= self._sample_at:
            self.watch.sample(len(self._done))
            self._sample_at = time.monotonic() + SAMPLE_SECONDS

    def _help(self, started: Background, run_id: str) -> Background:
        """Do what a coordinator would when the run has ended before its time, or nothing is heard of it."""
        is_silent = time.monotonic() > self._heard + STUCK_SECONDS
        if self._is_over or (started.code is None and not is_silent):
            return started
        why = f"nothing heard for {STUCK_SECONDS:.0f} s" if is_silent else f"ended with code {started.code}: {last_words(started)}"
        text = f"run {run_id[:8]}, round {self._round}: {why}"
        self.tell(f"resumed by hand: {text}")
        if TOO_FEW in started.said and not is_silent:
            self.helped.append(text)
        else:
            self.problems.append(f"a human was needed: {text}")
        started.stop()
        self._heard = time.monotonic()
        if is_silent:
            self.federation.on_server("stop", run_id, expect=None)
        return self.federation.on_server_in_background("resume", run_id)

    def _end(self, started: Background, run_id: str) -> None:
        """The command that started the run comes back by itself, with 0."""
        with suppress(CommandFailed):
            if started.finished(END_SECONDS) == 0:
                return
        self.problems.append(f"run {run_id[:8]} was done, but its command did not end well ({started.code}): {last_words(started)}")


def last_words(process: Background) -> str:
    """The last line that a command printed."""
    return (process.said.strip().splitlines() or [""])[-1][-300:]


def small_study(rounds: int, number: int) -> Study:
    """Private, a few steps a round; one site is enough for a round, so that a killed one costs nothing but its own update."""
    from tests.support.studies import PRIVATE, small

    changes = {"name": f"soak-{number + 1}", "data.source": "npz", "federation.rounds": rounds, "federation.min_sites": 1}
    return small(PRIVATE, **changes, **{"training.local_steps": STEPS_OF_A_ROUND, "federation.round_timeout_seconds": 90.0})


@contextmanager
def soaking(folder: Path, options: Options, tell: Callable[[str], None]) -> Iterator[Driver]:
    """A federation that was soaked, still up; at the end it is stopped, and what is left of it is a problem of the driver."""
    marker = secrets.token_hex(8)
    os.environ[MARKER] = marker
    deadline = time.monotonic() + 60 * options.minutes
    federation = start_federation(folder, HONEST, ())
    killer = Killer(federation, schedule(options.seed, options.rounds - QUIET_ROUNDS, options.kills, HONEST))
    driver = Driver(options, federation, killer, Watch(marker), tell)
    try:
        driver.run(deadline)
        killer.finish()
        yield driver
    finally:
        del os.environ[MARKER]
        codes = federation.stop()
    driver.problems += [f"{name} did not stop cleanly: exit code {code}" for name, code in codes.items() if code]
    _wait_until_gone(driver)


def _wait_until_gone(driver: Driver) -> None:
    """After the stop nothing of ours may live on."""
    until = time.monotonic() + GONE_SECONDS
    while (left := driver.watch.ours()) and time.monotonic() < until:
        time.sleep(0.5)
    driver.problems += [f"left behind after the stop: process {process.pid}" for process in left]
