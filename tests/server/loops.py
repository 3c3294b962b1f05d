# SPDX-License-Identifier: Apache-2.0
"""A round loop over `tests.support.local_grid`, its files in one folder, as `server.app` puts it together."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from common.events import Event, EventLog, read_events
from common.study import Study
from server.checkpoints import Checkpoints, ServerState
from server.rounds import RoundLoop
from server.runs import RunStore
from server.strategies.base import Strategy
from tests.support.local_grid import LocalGrid

SITES = ("a", "bb", "ccc")
RUN_ID = "r" * 32
START = {"w": np.linspace(-1, 1, 6, dtype=np.float32).reshape(2, 3), "b": np.zeros((), np.float32)}


def make_study(**federation: object) -> Study:
    return Study.model_validate({"name": "t", "privacy": "none", "federation": {"rounds": 2, "round_timeout_seconds": 60.0, **federation}})


def checkpoints(home: Path, study: Study) -> Checkpoints:
    return Checkpoints(home / "checkpoints", study.id, RUN_ID)


def run(
    home: Path,
    study: Study,
    grid: LocalGrid,
    *,
    kept: Checkpoints | None = None,
    hear: Iterable[Callable[[Event], None]] = (),
    strategy: Strategy | None = None,
    roster: Callable[[], Mapping[str, str]] = dict,
    min_sites: int = 0,
) -> ServerState:
    """All rounds; the last state."""
    home.mkdir(exist_ok=True)
    store, found = RunStore(home / "rounds.sqlite"), kept or checkpoints(home, study)
    with closing(EventLog(home / "events.jsonl", tuple(hear))) as events:
        loop = RoundLoop(grid, study, RUN_ID, len(grid.sites), found, store, events, min_sites=min_sites, strategy=strategy, roster=roster)  # type: ignore[arg-type]
        loop.run(lambda: START)
    state = checkpoints(home, study).latest()
    assert state is not None
    return state


def said(home: Path, name: str) -> list[dict[str, object]]:
    """The facts of each event of that name."""
    return [dict(event.facts) for event in read_events(home / "events.jsonl") if event.name == name]


def outcomes(home: Path, round_number: int) -> dict[str, str]:
    with closing(sqlite3.connect(home / "rounds.sqlite")) as database:
        return dict(database.execute("SELECT site, outcome FROM replies WHERE round = ?", (round_number,)))


def reasons(home: Path, round_number: int) -> dict[str, str]:
    with closing(sqlite3.connect(home / "rounds.sqlite")) as database:
        query = "SELECT site, reason FROM details WHERE round = ? AND kind = 'train' AND outcome != 'update'"
        return dict(database.execute(query, (round_number,)))
