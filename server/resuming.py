# SPDX-License-Identifier: Apache-2.0
"""Automatic resumption: a run that was interrupted goes on by itself, from its last checkpoint, under its own id and its sites' approvals.

Interrupted is a run that was handed to the SuperLink, whose offer stands, whose events name no end (`server.run_story`), and whose server
is not there: killed, stopped with the coordinator, or cut off from the SuperLink for too long. A run that was stopped, that has
finished, or whose server gave it up for a reason stays as it is. After three resumptions without a finished round the run is given up, and
its events say so.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from common.errors import RefusedError, WardroundError
from common.flower_compat import control
from common.flower_compat.control import FlowerRun, NotRunning
from server.home import ServerHome
from server.launch import submit
from server.offers import find_offer
from server.run_processes import is_at_work
from server.run_registry import RegisteredRun, RunRegistry
from server.run_story import FAILED, MOST_TRIES, RUN_ENDED, Stories, Story, note
from server.serverapps import ServerApps
from server.state import State

LOOK_SECONDS = 1.0
PAUSES_SECONDS = (0.0, 5.0, 20.0)
"""Before the first, second and third resumption in a row."""
RETRY_SECONDS = 10.0
LOG = logging.getLogger("wardround.executor")


@dataclass
class Waiting:
    """A run that is interrupted: its last Flower run, and when it may be resumed (monotonic seconds)."""

    flower_run_id: int
    not_before: float


class Resumer:
    """Looks after the runs of one coordinator; `apps` knows which of their servers are there. `clock` gives monotonic seconds."""

    def __init__(self, home: ServerHome, apps: ServerApps, clock: Callable[[], float] = time.monotonic) -> None:
        self._home, self._apps, self._clock = home, apps, clock
        self._registry, self._stories = RunRegistry(State(home.state)), Stories(home)
        self._waiting: dict[str, Waiting] = {}
        self._look_at = 0.0

    def look(self, now: bool = False) -> None:
        """Resume what was interrupted; every second, or at once if `now`. Raises NotRunning when the SuperLink is away."""
        if not now and self._clock() < self._look_at:
            return
        self._look_at = self._clock() + LOOK_SECONDS
        for run in self._registry.standing():
            if is_at_work(self._home, run.flower_run_id):
                continue
            try:
                self._consider(run)
            except NotRunning:
                raise
            except WardroundError as error:
                LOG.error("run %s: not resumed: %s", run.run_id[:8], error, extra=_facts(run))
                self._waiting[run.run_id] = Waiting(run.flower_run_id, self._clock() + RETRY_SECONDS)

    def _consider(self, run: RegisteredRun) -> None:
        waiting = self._waiting.get(run.run_id)
        if waiting is not None and waiting.flower_run_id == run.flower_run_id and self._clock() < waiting.not_before:
            return
        story = self._stories.of(run.run_id)
        if not story.is_open:
            self._waiting.pop(run.run_id, None)
            return
        known = control.runs(self._home, [run.flower_run_id]).get(run.flower_run_id)
        if _is_still_to_come(known) or (known is not None and story.never_came_to_work(known.details)):
            return
        if story.tries >= MOST_TRIES:
            self._give_up(run, story, known)
        elif waiting is None or waiting.flower_run_id != run.flower_run_id:
            self._waiting[run.run_id] = Waiting(run.flower_run_id, self._clock() + PAUSES_SECONDS[story.tries])
            self._consider(run)
        else:
            self._resume(run, known)

    def _resume(self, run: RegisteredRun, known: FlowerRun | None) -> None:
        """Hand it over once more; somebody who does so by hand at the same moment comes first."""
        offer = find_offer(State(self._home.state), run.run_id)
        if offer is None or offer.withdrawn:
            return
        reason = self._reason(run, known)
        with suppress(RefusedError):  # RUN_ACTIVE: it runs, or somebody is just resuming it
            flower_run_id = submit(self._home, offer, automatic_because=reason)
            LOG.warning("run %s: interrupted (%s); goes on as Flower run %d", run.run_id[:8], reason, flower_run_id, extra=_facts(run))

    def _give_up(self, run: RegisteredRun, story: Story, known: FlowerRun | None) -> None:
        reason = (
            f"resumed {story.tries} times without finishing a round (the last time {self._reason(run, known)}); see "
            f"`wardround-server logs {run.run_id[:8]}`, put it right, then `wardround-server resume {run.run_id[:8]}`"
        )
        control.stop_run(self._home, run.flower_run_id)
        note(self._home, run.run_id, RUN_ENDED, how=FAILED, reason=reason)
        LOG.error("run %s: given up: %s", run.run_id[:8], reason, extra=_facts(run))

    def _reason(self, run: RegisteredRun, known: FlowerRun | None) -> str:
        ended = self._apps.how_it_ended(run.flower_run_id)
        if ended is None:
            return "its server was lost while the coordinator did not run"
        return f"{ended}; Flower says: {known.details}" if known is not None and known.is_over and known.details else ended


def _is_still_to_come(known: FlowerRun | None) -> bool:
    """Whether Flower keeps the run for the executor to take."""
    return known is not None and known.status == "pending"


def _facts(run: RegisteredRun) -> dict[str, object]:
    return {"run": run.run_id, "flower_run": run.flower_run_id}
