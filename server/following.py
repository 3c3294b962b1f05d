# SPDX-License-Identifier: Apache-2.0
"""What a run has done so far, from its folder, the database and, where it runs, the SuperLink."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from common.errors import FederationError, RefusedError
from common.events import Event
from common.study import Study
from server.home import ServerHome
from server.launch import Answers, answers, the_offer
from server.offers import Offer, offers, set_withdrawn
from server.run_processes import is_at_work
from server.run_registry import RegisteredRun, RunRegistry
from server.run_story import FAILED, FINISHED, MOST_TRIES, RUN_ENDED, STOPPED, EventTail, Stories, Story, end_of, events_of, note
from server.runs import RunStore
from server.state import State

if TYPE_CHECKING:
    from common.flower_compat.control import FlowerRun

WAITING, WITHDRAWN, EXPIRED, INTERRUPTED, UNKNOWN = "waiting", "withdrawn", "expired", "interrupted", "unknown"
RUNNING, PENDING, COMPLETED, OVER = "running", "pending", "finished:completed", "finished"
POLL_SECONDS = 0.2
STATUS_SECONDS = 1.0
ENDING_SECONDS = 15.0
"""How long a server that is stopped may take to be gone."""


@dataclass(frozen=True)
class RunFacts:
    """One run for `runs` and `status`. `status` is waiting, withdrawn or expired before it starts, then Flower's, or interrupted.

    `details` says why; `suspended` maps a site that gets no message any more to the reasons.
    """

    offer: Offer
    answers: Answers
    flower_runs: tuple[RegisteredRun, ...]
    status: str
    details: str
    rounds_done: int
    suspended: dict[str, list[str]]

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
            "suspended": self.suspended,
            "created": record.created,
            "flower_run_ids": [str(run.flower_run_id) for run in self.flower_runs],
        }


def run_facts(home: ServerHome, offer: Offer, now: float) -> RunFacts:
    """The facts of one run; Flower is asked if it runs. Raises StorageError."""
    state, path = State(home.state), home.run(offer.run_id) / "rounds.sqlite"
    store = RunStore(path) if path.exists() else None
    status, details = where(home, offer, now)
    return RunFacts(
        offer,
        answers(state, offer),
        tuple(RunRegistry(state).of(offer.run_id)),
        status,
        details,
        len(store.rounds(offer.run_id)) if store else 0,
        store.suspended(offer.run_id) if store else {},
    )


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
    """Withdraw an offer, stop its run and see its server gone; whether it was running. Raises StorageError."""
    from common.flower_compat import control

    state = State(home.state)
    set_withdrawn(state, offer.run_id, True)
    started, was_running = RunRegistry(state).of(offer.run_id), False
    for one in started:
        try:
            was_running |= control.stop_run(home, one.flower_run_id)
        except control.NotRunning:
            break
    if started:
        with suppress(RefusedError):  # its server is still ending; the offer is withdrawn all the same
            note(home, offer.run_id, RUN_ENDED, wait_seconds=ENDING_SECONDS, how=STOPPED, reason="stopped by the coordinator")
    return was_running


def _online(home: ServerHome) -> set[str] | None:
    """Node keys that are connected; None while the SuperLink does not answer."""
    from common.flower_compat import control

    try:
        return {node.public_key for node in control.nodes(home) if node.is_online}
    except control.NotRunning:
        return None


def where(home: ServerHome, offer: Offer, now: float, stories: Stories | None = None) -> tuple[str, str]:
    """Where a run stands, and details: `finished:…` is over, `interrupted` goes on by itself. Raises StorageError."""
    started = RunRegistry(State(home.state)).of(offer.run_id)
    if not started:
        return (WITHDRAWN, "") if offer.withdrawn else (EXPIRED if now >= offer.record.expires else WAITING, "")
    story = (stories or Stories(home)).of(offer.run_id)
    if story.how is not None or offer.withdrawn:
        return _ended(story)
    known = _flower_run(home, started[-1].flower_run_id)
    if is_at_work(home, started[-1].flower_run_id):
        return (known.status, "") if known is not None and not known.is_over else (RUNNING, "")
    if known is not None and (known.status == PENDING or story.never_came_to_work(known.details) or not story.is_open):
        return known.status, known.details
    return _interrupted(home, story, known) if story.is_open else (UNKNOWN, "the SuperLink does not run, or has forgotten the run")


def _ended(story: Story) -> tuple[str, str]:
    if story.how == FINISHED:
        return COMPLETED, ""
    return ("finished:failed", story.reason) if story.how == FAILED else ("finished:stopped", "")


def _interrupted(home: ServerHome, story: Story, known: FlowerRun | None) -> tuple[str, str]:
    from server.supervisor import is_held

    if not is_held(home):
        return INTERRUPTED, "it goes on when the coordinator runs again (`wardround-server up`)"
    why = f"{known.details}; " if known is not None and known.details else ""
    return INTERRUPTED, f"{why}it goes on by itself ({story.tries} of {MOST_TRIES} tries since the last finished round)"


def _flower_run(home: ServerHome, flower_run_id: int) -> FlowerRun | None:
    from server.supervisor import is_held

    if not is_held(home):
        return None
    from common.flower_compat import control

    try:
        return control.runs(home, [flower_run_id]).get(flower_run_id)
    except control.NotRunning:
        return None


def follow(home: ServerHome, run_id: str, tail: EventTail, hear: Callable[[Event], None]) -> None:
    """Hand each event of a run to `hear` until the run is over; one that is interrupted and goes on by itself is not.

    Raises FederationError when it failed or was stopped.
    """
    look_at, stories, status, details = 0.0, Stories(home), RUNNING, ""
    while not status.startswith(OVER):
        for event in tail.news():
            hear(event)
        time.sleep(POLL_SECONDS)
        if time.monotonic() >= look_at:
            status, details = where(home, the_offer(State(home.state), run_id), time.time(), stories)
            look_at = time.monotonic() + STATUS_SECONDS
    for event in tail.news():
        hear(event)
    if status != COMPLETED:
        raise FederationError(f"run {run_id[:8]} {status}: {details or 'no details'}; `wardround-server logs {run_id[:8]}` has more")


class Tail(EventTail):
    """The events of a run from now on; made before the run is submitted, it misses nothing."""

    def __init__(self, home: ServerHome, run_id: str) -> None:
        path = events_of(home, run_id)
        super().__init__(path, end_of(path))
