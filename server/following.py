# SPDX-License-Identifier: Apache-2.0
"""What a run has done so far, from its folder, the database and, where it runs, the SuperLink."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.errors import FederationError, StorageError
from common.events import Event, parse_event, read_events
from common.study import Study
from server.home import ServerHome
from server.launch import Answers, answers
from server.offers import Offer, offers, set_withdrawn
from server.run_registry import RegisteredRun, RunRegistry
from server.runs import RunStore
from server.state import State

if TYPE_CHECKING:
    from common.flower_compat.control import FlowerRun

WAITING, WITHDRAWN, EXPIRED, FINISHED, UNKNOWN = "waiting", "withdrawn", "expired", "finished:completed", "unknown"
POLL_SECONDS = 0.2
STATUS_SECONDS = 1.0


@dataclass(frozen=True)
class RunFacts:
    """One run for `runs` and `status`. `status` is waiting, withdrawn or expired before it starts, then Flower's; `details` says why."""

    offer: Offer
    answers: Answers
    flower_runs: tuple[RegisteredRun, ...]
    status: str
    details: str
    rounds_done: int

    @property
    def as_json(self) -> dict[str, Any]:
        """For machines."""
        record, study = self.offer.record, Study.from_canonical_json(self.offer.study)
        return {
            "run_id": record.run_id,
            "study": study.name,
            "study_id": record.study_id,
            "status": self.status,
            "details": self.details,
            "rounds_done": self.rounds_done,
            "rounds": study.federation.rounds,
            "sites": list(record.sites),
            "min_sites": record.min_sites,
            "approved": list(self.answers.approved),
            "rejected": list(self.answers.rejected),
            "silent": list(self.answers.silent),
            "created": record.created,
            "flower_run_ids": [str(run.flower_run_id) for run in self.flower_runs],
        }


def run_facts(home: ServerHome, offer: Offer, now: float) -> RunFacts:
    """The facts of one run; Flower is asked if it runs. Raises StorageError."""
    state = State(home.state)
    started = tuple(RunRegistry(state).of(offer.run_id))
    folder = home.run(offer.run_id)
    path = folder / "rounds.sqlite"
    done = len(RunStore(path).rounds(offer.run_id)) if path.exists() else 0
    status, details = _status(home, offer, started, folder, now)
    return RunFacts(offer, answers(state, offer), started, status, details, done)


def all_runs(home: ServerHome, now: float) -> list[RunFacts]:
    """All runs, oldest first. Raises StorageError."""
    return [run_facts(home, offer, now) for offer in offers(State(home.state))]


def standing(home: ServerHome, now: float) -> dict[str, Any]:
    """How the coordinator stands: `up` (`up.json`, or None), its sites and whether they are connected (None: not known), its runs."""
    from server.sites import SiteRegistry
    from server.supervisor import UpFile

    up = UpFile.read(home)
    online = _online(home) if up is not None else None
    sites = [
        {"name": site.name, "status": site.status, "connected": None if online is None else site.node_key in online}
        for site in SiteRegistry(State(home.state)).all()
    ]
    runs = [facts.as_json for facts in all_runs(home, now)]
    return {"url": home.settings.url, "up": None if up is None else vars(up), "sites": sites, "runs": runs}


def stop_run(home: ServerHome, offer: Offer) -> bool:
    """Withdraw an offer and stop its run; whether it was running. Raises StorageError."""
    from common.flower_compat import control

    state = State(home.state)
    set_withdrawn(state, offer.run_id, True)
    was_running = False
    for started in RunRegistry(state).of(offer.run_id):
        try:
            was_running |= control.stop_run(home, started.flower_run_id)
        except control.NotRunning:
            return False
    return was_running


def _online(home: ServerHome) -> set[str] | None:
    """Node keys that are connected; None while the SuperLink does not answer."""
    from common.flower_compat import control

    try:
        return {node.public_key for node in control.nodes(home) if node.is_online}
    except control.NotRunning:
        return None


def _status(home: ServerHome, offer: Offer, started: tuple[RegisteredRun, ...], folder: Path, now: float) -> tuple[str, str]:
    if started:
        known = _flower_run(home, started[-1].flower_run_id)
        if known is not None:
            return known.status, known.details
        is_done = any(event.name == "rounds_finished" for event in read_events(folder / "events.jsonl"))
        return (FINISHED, "") if is_done else (UNKNOWN, "the SuperLink does not run, or has forgotten the run")
    if offer.withdrawn:
        return WITHDRAWN, ""
    return (EXPIRED, "") if now >= offer.record.expires else (WAITING, "")


def _flower_run(home: ServerHome, flower_run_id: int) -> FlowerRun | None:
    from server.supervisor import is_held

    if not is_held(home):
        return None
    from common.flower_compat import control

    try:
        return control.runs(home, [flower_run_id]).get(flower_run_id)
    except control.NotRunning:
        return None


def follow(home: ServerHome, run_id: str, flower_run_id: int, tail: Tail, hear: Callable[[Event], None]) -> FlowerRun:
    """Hand each event of a run to `hear` until Flower says that it is over. Raises FederationError when it failed."""
    look_at, known = 0.0, None
    while known is None or not known.is_over:
        for event in tail.news():
            hear(event)
        time.sleep(POLL_SECONDS)
        if time.monotonic() >= look_at:
            known = _look(home, flower_run_id) or known
            look_at = time.monotonic() + STATUS_SECONDS
    for event in tail.news():
        hear(event)
    if known.status != FINISHED:
        raise FederationError(
            f"run {run_id[:8]} {known.status}: {known.details or 'no details'}; `wardround-server logs {run_id[:8]}` has more"
        )
    return known


def _look(home: ServerHome, flower_run_id: int) -> FlowerRun | None:
    """Flower's word on a run; None while the SuperLink is being restarted."""
    from common.flower_compat import control

    try:
        return control.runs(home, [flower_run_id]).get(flower_run_id)
    except control.NotRunning:
        return None


class Tail:
    """Reads the event file of a run as it grows, from its present end on; made before the run is submitted, it misses nothing."""

    def __init__(self, home: ServerHome, run_id: str) -> None:
        self._path = home.run(run_id) / "events.jsonl"
        self._position = self._path.read_bytes().rfind(b"\n") + 1 if self._path.exists() else 0

    def news(self) -> Iterator[Event]:
        """The events that are new since the last call; a line that is being written waits."""
        if not self._path.exists():
            return
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self._position += len(line)
                    yield parse_event(line.decode())
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be read ({error.strerror})") from error
