# SPDX-License-Identifier: Apache-2.0
import sqlite3
from pathlib import Path

import numpy as np
import pytest

from common.errors import StorageError
from common.study import Study
from server.averaging import moving_average
from server.checkpoints import Checkpoints, ServerState
from server.initial import initial_model
from server.runs import ReplyDetail, RunStore
from server.strategies.registry import STRATEGIES, make_strategy

MODEL = {"w": np.array([1.0, 2.0], np.float32), "b": np.array(3.0, np.float32)}
UPDATE = {"w": np.array([0.5, -1.0], np.float32), "b": np.array(1.0, np.float32)}


def test_every_strategy_that_a_study_may_name_exists_and_moves_by_the_mean() -> None:
    for name in STRATEGIES:
        extra = {"proximal_mu": 0.1} if name == "fedprox" else {}
        study = Study.model_validate({"name": "t", "privacy": "none", "federation": {"strategy": name, **extra}})
        moved = make_strategy(study.federation).apply(MODEL, UPDATE)
        assert moved["w"].tolist() == [1.5, 1.0]
        assert (moved["b"].item(), moved["w"].dtype) == (4.0, np.float32)


def test_the_average_is_warmed_up() -> None:
    zero = {name: np.zeros_like(value) for name, value in MODEL.items()}
    assert moving_average(zero, MODEL, 0.95, 1)["w"].tolist() == pytest.approx([9 / 11, 18 / 11])
    assert moving_average(zero, MODEL, 0.95, 10_000)["w"].tolist() == pytest.approx([0.05, 0.1])
    assert moving_average(zero, MODEL, 0.0, 5)["w"].tolist() == [1.0, 2.0]


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "c", "study", "run")
    checkpoints.save(ServerState(1, MODEL, MODEL))
    (tmp_path / "c" / "round-00002.safetensors").mkdir()
    with pytest.raises(StorageError, match="cannot write"):
        checkpoints.save(ServerState(2, MODEL, MODEL))
    assert not list((tmp_path / "c").glob("*.part"))


def test_the_run_store_repeats_a_round_without_doubling_it(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "rounds.sqlite")
    for _ in range(2):
        store.begin("study", "run", "{}")
        outcomes = {"north": ("update", 1.0), "south": ("WORKER_LOST", 2.0)}
        store.record_round("run", 1, seconds=2.5, update_norm=0.1, outcomes=outcomes)
    with sqlite3.connect(tmp_path / "rounds.sqlite") as database:
        assert database.execute("SELECT round, updates, seconds FROM rounds").fetchall() == [(1, 1, 2.5)]
        assert database.execute("SELECT site, outcome FROM replies ORDER BY site").fetchall() == [
            ("north", "update"),
            ("south", "WORKER_LOST"),
        ]
        assert database.execute("SELECT count(*) FROM run").fetchone() == (1,)


def test_a_repeated_round_leaves_nothing_of_the_first_attempt(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "rounds.sqlite")
    for site in ("north", "south"):
        detail = ReplyDetail("train", site, "update", 1.0, "", 10, 20)
        store.record_round("run", 1, seconds=2.5, update_norm=0.1, outcomes={site: ("update", 1.0)}, details=[detail])
    assert [detail.site for _, detail in store.details("run")] == ["south"]
    with sqlite3.connect(tmp_path / "rounds.sqlite") as database:
        assert database.execute("SELECT site FROM replies").fetchall() == [("south",)]


def test_the_run_store_keeps_what_a_site_signed_and_reads_an_older_store(tmp_path: Path) -> None:
    path = tmp_path / "rounds.sqlite"
    store = RunStore(path)
    signed = ReplyDetail("train", "north", "update", 1.5, "", 10, 20, "ab", 7, "cd", "{}")
    late = ReplyDetail("train", "south", "NO_REPLY", 9.0, "no reply within 9 s", 10, 0)
    store.record_round("run", 1, seconds=9.0, update_norm=0.5, outcomes={"north": ("update", 1.5)}, details=[signed, late])
    store.record_details("run", 1, [ReplyDetail("evaluate", "north", "evaluated", 0.1, "", 10, 5)])
    assert store.details("run")[:2] == [(1, signed), (1, late)]
    assert [detail.kind for _, detail in store.details("run")] == ["train", "train", "evaluate"]
    assert [(done.round, done.updates) for done in store.rounds("run")] == [(1, 1)]
    with sqlite3.connect(path) as database:
        database.executescript("DROP TABLE details; DROP TABLE strikes; PRAGMA user_version = 0")
        database.execute("PRAGMA user_version = 0")
    assert RunStore(path).details("run") == []


def test_the_initial_model_comes_from_the_study_and_its_seed_only() -> None:
    study = Study.model_validate({"name": "t", "privacy": "none"})
    first, second = initial_model(study), initial_model(study)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    other = initial_model(study.with_changes({"seed": 1}))
    assert any(not np.array_equal(first[name], other[name]) for name in first)
