# SPDX-License-Identifier: Apache-2.0
"""A run to break something in, and the processes that can be broken: found by what they are, ended by their id."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from common.study import Study
from simulations.processes import Background, wait_until
from tests.support.federation import COHORT, HONEST, Federation, json_lines
from tests.support.studies import PRIVATE, write_study
from tests.support.wholeness import Whole, assert_whole, charges_of

FIRST_STEPS, FEWEST_STEPS = 40, 20
"""Local steps of a round before this machine's speed is known, and at least."""
TRAINING_SECONDS = 5.0
"""How long a site trains in a round, so that a fault meets it there."""
STUCK_SECONDS = 3.0
ENOUGH_ROUNDS = 18
"""Rounds of a run that goes on with the others while a site is still away for some 20 s after its fault: it finds one to come back to."""
RUN_SECONDS = 900.0
"""Longest that a run may take, on a machine that has much else to do."""


@dataclass
class Running:
    """A run that has begun; `sites` take part, `rounds` are planned. `process` is the coordinator's command that follows it."""

    federation: Federation
    study: Study
    run_id: str
    sites: Sequence[str]
    process: Background

    @property
    def rounds(self) -> int:
        return self.study.federation.rounds

    def rounds_done(self) -> int:
        """Rounds that the run store knows of."""
        return len(self.federation.store_rows(self.run_id, "SELECT round FROM rounds"))

    def wait_for_rounds(self, count: int, seconds: float = RUN_SECONDS) -> None:
        """Wait until so many rounds are done."""
        wait_until(lambda: self.rounds_done() >= count, f"{count} rounds of {self.study.name} are done", seconds, self.process)

    def wait_for_training(self, site: str, after_round: int = 1) -> int:
        """Wait until a site trains in a later round than that: charged, and nothing has left. The round.

        The first round of a study takes longer than others, because the site then finds out how much noise it has to add.
        """
        found: list[int] = []

        def is_training() -> bool:
            state = json.loads((self.federation.hospitals[site].home / "daemon.json").read_text(encoding="utf-8"))
            if state["run_id"] == self.run_id and state["in_hand"] and (state["round"] or 0) > after_round:
                one = charges_of(self.federation, site, self.run_id).get((self.run_id, state["round"]))
                found.extend([state["round"]] if one is not None and one.states == ["reserved"] else [])
            return bool(found)

        wait_until(is_training, f"{site} trains", RUN_SECONDS, self.process)
        return found[0]

    def wait_for_stuck_reply(self, site: str, number: int) -> None:
        """Wait until a site has trained a round and has tried to send its update for a moment."""
        slot = (self.run_id, number)
        wait_until(lambda: "releasing" in charges_of(self.federation, site, self.run_id)[slot].states, f"{site} has trained", RUN_SECONDS)
        time.sleep(STUCK_SECONDS)

    def finish(self, seconds: float = RUN_SECONDS) -> Whole:
        """Wait for the command's good end, and check everything."""
        code = self.process.finished(seconds)
        assert code == 0, f"the run ended with exit code {code}\n{self.process.said}"
        return assert_whole(self.federation, self.run_id, self.rounds, self.sites)


@contextmanager
def running(
    federation: Federation,
    name: str,
    rounds: int = 4,
    sites: Sequence[str] = HONEST,
    training_seconds: float = TRAINING_SECONDS,
    **changes: Any,
) -> Iterator[Running]:
    """A run of a study of this name that the sites have approved; they train about so long in a round.

    One that a failed test leaves is stopped.
    """
    steps = steps_for(federation, sites[0], training_seconds)
    settings = {"federation.rounds": rounds, "federation.min_sites": 1, "federation.round_timeout_seconds": RUN_SECONDS}
    settings |= {"training.local_steps": steps, **changes}
    study = federation.study(name, {**PRIVATE, "epsilon": 2.0}, **settings)
    process = federation.offer(write_study(study, federation.folder), sites)
    for site in sites:
        federation.wait_for_offer(federation.hospitals[site], study.id, process, 300)
        approve(federation, site, study.id)
    run_id = str(federation.rows("SELECT run_id FROM offer WHERE study_id = ? ORDER BY created DESC", study.id)[0]["run_id"])
    try:
        yield Running(federation, study, run_id, sites, process)
    except BaseException:
        federation.on_server("stop", run_id, expect=None)
        process.stop()
        raise


def approve(federation: Federation, site: str, study_id: str) -> None:
    """What `wardround-client approve` does, in this process: each command is a new Python with torch, and there are many scenarios."""
    from client.approvals import Approvals
    from client.approving import approve, propose
    from client.coordinator import Coordinator
    from client.site_home import SiteHome

    home = SiteHome(federation.hospitals[site].home)
    approve(home, propose(home, study_id, COHORT, 1, time.time()), "a scenario", time.time())
    with Coordinator(home) as coordinator:
        Approvals(home).deliver(coordinator.approve)


def steps_for(federation: Federation, site: str, seconds: float) -> int:
    """Local steps that take a site about so long, from what its last rounds took."""
    entries = [entry for entry in json_lines(federation.hospitals[site].home / "rounds.jsonl") if entry["steps"]][-3:]
    if not entries:
        return FIRST_STEPS
    return max(FEWEST_STEPS, round(seconds * median(entry["steps"] / entry["seconds"] for entry in entries)))


def server_child(federation: Federation, name: str) -> int:
    """Process id of `superlink`, `executor` or `gateway`, as `up` has written it down."""
    facts = json.loads((federation.coordinator / "up.json").read_text(encoding="utf-8"))["children"][name]
    assert facts["pid"] is not None, f"{name} does not run"
    return int(facts["pid"])


def server_app(federation: Federation) -> int:
    """Process id of the one ServerApp that runs."""
    assert federation.server is not None
    return _one(psutil.Process(federation.server.pid).children(recursive=True), "common.flower_compat.serverapp")


def worker(federation: Federation, site: str) -> int:
    """Process id of a site's training process."""
    found = workers(federation, site)
    assert len(found) == 1, f"{site} has {len(found)} training processes"
    return found[0]


def workers(federation: Federation, site: str) -> list[int]:
    """Process ids of a site's training process, if it has one: forked from the daemon's fork server."""
    daemon = psutil.Process(federation.sites[site].pid)
    servers = [child for child in daemon.children() if any("forkserver" in part for part in child.cmdline())]
    return [child.pid for server in servers for child in server.children() if child.status() != psutil.STATUS_ZOMBIE]


@contextmanager
def no_more_memory(process_id: int) -> Iterator[None]:
    """A process gets no address space any more (RLIMIT_AS), not even what it gives back, as long as it lives and the block lasts."""
    process = psutil.Process(process_id)
    before = process.rlimit(psutil.RLIMIT_AS)
    process.rlimit(psutil.RLIMIT_AS, (process.memory_info().vms // 2, before[1]))
    try:
        yield
    finally:
        with suppress(psutil.NoSuchProcess):
            process.rlimit(psutil.RLIMIT_AS, before)


def kill(process_id: int) -> None:
    """End it at once, as the kernel does when memory runs out."""
    os.kill(process_id, signal.SIGKILL)


def is_gone(process_id: int) -> bool:
    """Whether a process has ended, whoever still has to take notice of it."""
    try:
        return psutil.Process(process_id).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@contextmanager
def held(process_id: int) -> Iterator[None]:
    """Stop a process's clock."""
    os.kill(process_id, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process_id, signal.SIGCONT)


def kill_daemon(federation: Federation, site: str) -> None:
    """SIGKILL to a site's daemon alone; it is left to `start_site` to start another."""
    daemon = federation.sites.pop(site)
    kill(daemon.pid)
    daemon.finished(10)


def wait_online(federation: Federation, site: str, times: int = 1) -> None:
    """Wait until a daemon has gone online, counted over its whole log."""
    log = federation.hospitals[site].home / "logs" / "daemon.log"
    wait_until(lambda: _times_online(log) >= times, f"{site} is online", 300, federation.sites[site])


def restart_site(federation: Federation, site: str, changes: Mapping[str, str] | None = None) -> None:
    """Stop a site's daemon if it runs, start another, and wait until that is online; `changes` go into its environment."""
    if site in federation.sites:
        federation.stop_site(site)
    before = _times_online(federation.hospitals[site].home / "logs" / "daemon.log")
    federation.start_site(federation.hospitals[site], changes=changes)
    wait_online(federation, site, before + 1)


def _times_online(log: Path) -> int:
    return sum(line["event"] == "online" for line in json_lines(log))


def _one(processes: Sequence[psutil.Process], word: str) -> int:
    found = [process.pid for process in processes if any(word in part for part in process.cmdline())]
    assert len(found) == 1, f"{len(found)} processes of {word}"
    return found[0]
