# SPDX-License-Identifier: Apache-2.0
"""The private evaluation over a real grid: what the server asks for, adds up, stores and never stores."""

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.worker import WorkerSettings
from common.errors import StorageError
from common.events import EventLog, read_events
from common.private_metrics import private_auroc
from common.study import Study
from server.checkpoints import Checkpoints
from server.rounds import RoundLoop
from server.runs import RunStore, StoredMeasurement
from simulations.engine import InProcessGrid

SITES = ["a", "bb", "ccc"]
START = {"w": np.zeros((2, 3), np.float32)}


def make_study(rounds: int = 2, **private: object) -> Study:
    federation = {"rounds": rounds, "round_timeout_seconds": 60.0}
    return Study.model_validate({"name": "t", "privacy": {"epsilon": 3}, "federation": federation, "evaluation": {"private": private}})


def run(home: Path, study: Study, misbehave: dict[int, str] | None = None) -> list[StoredMeasurement]:
    settings = WorkerSettings("tests.support.apps:sites_app", {"MISBEHAVE": json.dumps(misbehave or {})})
    store = RunStore(home / "rounds.sqlite")
    with closing(EventLog(home / "events.jsonl")) as events, InProcessGrid(SITES, settings, 3) as grid:
        checkpoints = Checkpoints(home / "checkpoints", study.id, "run-1")
        RoundLoop(grid, study, "run-1", len(SITES), checkpoints, store, events).run(lambda: START)
    return store.measurements("run-1")


def facts(home: Path, name: str) -> list[dict[str, Any]]:
    return [dict(event.facts) for event in read_events(home / "events.jsonl") if event.name == name]


def test_the_sum_of_the_sites_is_measured_once_at_the_end_and_no_site_is_stored(tmp_path: Path) -> None:
    (found,) = run(tmp_path, make_study())
    counts = np.zeros((1, 2, 16), np.int64)
    counts[0, 0, 0] = counts[0, 1, -1] = 100 + 200 + 300
    assert found.counts == counts.tolist()
    expected = private_auroc(counts, 1.0, sites=3)
    assert expected.is_measurable
    assert (found.round, found.sites, found.auroc, found.standard_error) == (2, 3, expected.value, expected.standard_error)
    assert facts(tmp_path, "measured") == [{"round": 2, "sites": 3, "auroc": found.auroc, "standard_error": found.standard_error}]
    assert all(set(each) == {"round", "site"} for each in facts(tmp_path, "site_evaluated"))


def test_a_figure_that_drowns_in_noise_is_not_given(tmp_path: Path) -> None:
    (found,) = run(tmp_path, make_study(rounds=1, epsilon=0.03))
    assert found.auroc is None
    assert found.standard_error > 0.05
    assert facts(tmp_path, "measured")[0]["auroc"] is None


@pytest.mark.parametrize("behaviour", ["no counts", "few counts"])
def test_a_site_with_a_bad_histogram_is_left_out(tmp_path: Path, behaviour: str) -> None:
    (found,) = run(tmp_path, make_study(rounds=1), {1: behaviour})
    assert found.sites == 2
    assert np.sum(found.counts) == 2 * (100 + 300)
    assert [(each["site"], each["code"]) for each in facts(tmp_path, "site_refused")] == [("bb", "REPLY_INVALID")]


def test_nothing_is_measured_where_the_study_plans_nothing(tmp_path: Path) -> None:
    assert run(tmp_path, make_study(rounds=1).with_changes({"evaluation.private": None})) == []
    assert facts(tmp_path, "measured") == []


def test_every_round_is_measured_once_also_when_the_run_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after the checkpoint of round 2 and before its measurement: the next start makes up for it."""
    study = make_study(rounds=3, every=1, held_out_patients=2000, epsilon=3.0)
    record = RunStore.record_measurement

    def fails_at_two(store: RunStore, run_id: str, round_number: int, **values: Any) -> None:
        if round_number == 2:
            raise StorageError("disk full")
        record(store, run_id, round_number, **values)

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "record_measurement", fails_at_two)
        with pytest.raises(StorageError, match="disk full"):
            run(tmp_path, study)
    assert [found.round for found in run(tmp_path, study)] == [1, 2, 3]
    assert [each["round"] for each in facts(tmp_path, "measured")] == [1, 2, 3]
    assert [each["round"] for each in facts(tmp_path, "round_done")] == [1, 2, 3]
