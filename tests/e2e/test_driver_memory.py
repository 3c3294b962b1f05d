# SPDX-License-Identifier: Apache-2.0
"""Memory of the process that drives a simulation: real rounds with real workers, counted allocation by allocation."""

import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np

from client.worker import WorkerSettings
from common.events import Event, EventLog
from common.study import Study
from server.checkpoints import Checkpoints
from server.rounds import RoundLoop
from server.runs import RunStore
from simulations.engine import InProcessGrid

SITES = ["a", "bb", "ccc"]
ROUNDS = 24
START = {"w": np.zeros((100, 500), np.float32)}


def memory_after_each_round(home: Path) -> list[int]:
    """Bytes that Python and numpy hold when a round is done."""
    after: list[int] = []

    def listen(event: Event) -> None:
        if event.name == "round_done":
            after.append(tracemalloc.get_traced_memory()[0])

    federation = {"rounds": ROUNDS, "round_timeout_seconds": 60.0, "ema_decay": 0.5}
    study = Study.model_validate({"name": "t", "privacy": "none", "federation": federation})
    settings = WorkerSettings("tests.support.apps:sites_app", {})
    with closing(EventLog(home / "events.jsonl", (listen,))) as events, InProcessGrid(SITES, settings, 3) as grid:
        checkpoints, store = Checkpoints(home / "checkpoints", study.id, "run-1"), RunStore(home / "rounds.sqlite")
        RoundLoop(grid, study, "run-1", len(SITES), checkpoints, store, events).run(lambda: START)
    return after


def test_memory_of_the_driver_does_not_grow_with_rounds(tmp_path: Path) -> None:
    """Keeping one model, one update or one reply a round would cost 200 kB; what libraries remember of a round is a few hundred bytes."""
    tracemalloc.start()
    try:
        after = memory_after_each_round(tmp_path)
    finally:
        tracemalloc.stop()
    half = ROUNDS // 2
    early, late = max(after[2:half]), max(after[half:])
    assert late - early < START["w"].nbytes / 2
