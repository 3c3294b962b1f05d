# SPDX-License-Identifier: Apache-2.0
"""The round loop over a real grid with real processes; the sites behave as each test asks."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from client.worker import WorkerSettings
from common.errors import FederationError
from common.events import EventLog, read_events
from common.study import Study
from server.checkpoints import Checkpoints
from server.rounds import RoundLoop
from server.runs import RunStore
from simulations.engine import InProcessGrid

SITES = ["a", "bb", "ccc"]
START = {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32)}


def make_study(**federation: object) -> Study:
    return Study.model_validate({"name": "t", "privacy": "none", "federation": {"rounds": 2, "round_timeout_seconds": 300.0, **federation}})


def run(home: Path, study: Study, misbehave: dict[int, str] | None = None, workers: int = 3) -> Checkpoints:
    checkpoints = Checkpoints(home / "checkpoints", study.id, "run-1")
    settings = WorkerSettings("tests.support.apps:sites_app", {"MISBEHAVE": json.dumps(misbehave or {})})
    with closing(EventLog(home / "events.jsonl")) as events, InProcessGrid(SITES, settings, workers) as grid:
        loop = RoundLoop(grid, study, "run-1", len(SITES), checkpoints, RunStore(home / "rounds.sqlite"), events)
        loop.run(lambda: START)
    return checkpoints


def value_after(home: Path, study: Study, **options: object) -> float:
    state = run(home, study, **options).latest()
    values = {float(value) for array in state.model.values() for value in array.ravel()}
    assert len(values) == 1
    return values.pop()


def outcomes(home: Path, round_number: int) -> dict[str, str]:
    with sqlite3.connect(home / "rounds.sqlite") as database:
        return dict(database.execute("SELECT site, outcome FROM replies WHERE round = ?", (round_number,)))


def test_two_rounds_of_equal_weights(tmp_path: Path) -> None:
    assert value_after(tmp_path, make_study()) == 2 * (1 + 2 + 3) / 3
    assert outcomes(tmp_path, 2) == {"a": "update", "bb": "update", "ccc": "update"}
    names = [event.name for event in read_events(tmp_path / "events.jsonl")]
    assert names.count("round_started") == names.count("round_done") == 2
    assert names[-1] == "rounds_finished"
    assert names.count("site_evaluated") == 3


def test_public_weights(tmp_path: Path) -> None:
    study = make_study(weights={"a": 1.0, "bb": 1.0, "ccc": 2.0}, rounds=1)
    assert value_after(tmp_path, study) == pytest.approx((1 + 2 + 2 * 3) / 4, abs=1e-6)


def test_a_site_without_a_public_weight_is_left_out(tmp_path: Path) -> None:
    study = make_study(weights={"a": 1.0, "bb": 1.0}, rounds=1)
    assert value_after(tmp_path, study) == 1.5
    assert outcomes(tmp_path, 1)["ccc"] == "NO_REPLY", "it is not asked, so it neither trains nor spends"


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        ("nan", "REPLY_INVALID"),
        ("shape", "REPLY_INVALID"),
        ("names", "REPLY_INVALID"),
        ("replay", "REPLY_INVALID"),
        ("stranger", "REPLY_INVALID"),
        ("refuse", "BUDGET_EXHAUSTED"),
        ("raise", "NO_REPLY"),
        ("silent", "NO_REPLY"),
    ],
)
def test_one_bad_site_never_stops_the_others(tmp_path: Path, behaviour: str, code: str) -> None:
    timeout_seconds = 4.0 if behaviour == "silent" else 300.0
    assert value_after(tmp_path, make_study(rounds=1, round_timeout_seconds=timeout_seconds), misbehave={2: behaviour}) == 1.5
    assert outcomes(tmp_path, 1) == {"a": "update", "bb": "update", "ccc": code}


def test_a_site_cannot_speak_in_anothers_name(tmp_path: Path) -> None:
    run(tmp_path, make_study(rounds=1, min_sites=1), misbehave={2: "impostor", 1: "refuse"})
    assert outcomes(tmp_path, 1) == {"a": "update", "bb": "BUDGET_EXHAUSTED", "ccc": "REPLY_INVALID"}


def test_too_few_updates_stop_the_run_and_it_resumes(tmp_path: Path) -> None:
    study = make_study(min_sites=3)
    with pytest.raises(FederationError, match=r"round 1: 2 updates, the study needs 3 \(bb: BUDGET_EXHAUSTED\)"):
        run(tmp_path, study, misbehave={1: "refuse"})
    assert value_after(tmp_path, study) == 4.0


def test_resuming_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    study = make_study(rounds=3)
    run(tmp_path, study)
    newest = tmp_path / "checkpoints" / "round-00003.safetensors"
    newest.unlink()
    run(tmp_path, study)
    done = [event.facts["round"] for event in read_events(tmp_path / "events.jsonl") if event.name == "round_done"]
    assert done == [1, 2, 3, 3]
    assert value_after(tmp_path, study) == 6.0


def test_a_moving_average_is_what_is_evaluated_and_kept(tmp_path: Path) -> None:
    study = make_study(ema_decay=0.5)
    state = run(tmp_path, study).latest()
    first = 2 / 11 * 0 + 9 / 11 * 2
    assert state.average["b"][0] == pytest.approx(3 / 12 * first + 9 / 12 * 4, rel=1e-6)
