# SPDX-License-Identifier: Apache-2.0
"""A server that is killed at any point of any round ends where it would have ended; SIGKILL in a process of its own, no handler runs."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from flwr.app import RecordDict

from common.errors import StorageError
from common.events import Event
from common.protocol import Arrays, FloatArray, Instruction, Update
from common.study import Study
from server.checkpoints import Checkpoints, ServerState
from server.runs import RunStore
from server.strategies.base import Memory, Strategy
from tests.server.loops import RUN_ID, SITES, checkpoints, make_study, outcomes, reasons, run, said
from tests.support.local_grid import LocalGrid

ROUNDS = 3
STUDY = make_study(rounds=ROUNDS, ema_decay=0.5)


class Momentum(Strategy):
    """FedAvgM (Hsu et al. 2019, arXiv 1909.06335): remembers a velocity, in float64, and how often it was asked."""

    def apply(self, model: Arrays, mean_update: Mapping[str, FloatArray]) -> dict[str, FloatArray]:
        return self.step(model, mean_update, {})[0]

    def step(self, model: Arrays, mean_update: Mapping[str, FloatArray], memory: Memory) -> tuple[dict[str, FloatArray], Memory]:
        velocity = {name: 0.9 * memory.get(f"v/{name}", 0.0) + value.astype(np.float64) for name, value in mean_update.items()}
        moved = {name: (value + velocity[name]).astype(np.float32) for name, value in model.items()}
        calls = np.asarray(memory.get("calls", 0)) + 1
        return moved, {**{f"v/{name}": value for name, value in velocity.items()}, "calls": calls}


def behave(site: str, instruction: Instruction) -> RecordDict:
    """An update that depends on model, round and site, the same each time."""
    delta = {name: (np.sin(3 * array) / len(site) + instruction.round).astype(np.float32) for name, array in instruction.model.items()}
    return Update(instruction.run_id, instruction.round, site, delta).to_records()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class Fatal(Checkpoints):
    """Checkpoints whose writer is killed before, in, or after the save of one round."""

    def __init__(self, home: Path, study: Study, when: str, number: int) -> None:
        super().__init__(home / "checkpoints", study.id, RUN_ID)
        self._when, self._number = when, number

    def save(self, state: ServerState) -> Path:
        if state.round != self._number:
            return super().save(state)
        if self._when == "before the save":
            die()
        if self._when == "in the save":
            Path.replace = lambda *_: die()  # type: ignore[assignment,method-assign,return-value]
        path = super().save(state)
        if self._when == "after the save":
            die()
        return path


def fatal_listener(when: str, number: int) -> Callable[[Event], None]:
    names = {"after the first reply": "site_replied", "after the record": "round_done", "before the round": "round_started"}

    def hear(event: Event) -> None:
        if event.name == names.get(when) and event.facts.get("round") == number:
            die()

    return hear


def killed(home: Path, when: str, number: int) -> None:
    """A server that is killed there."""
    home.mkdir()
    child = os.fork()
    if child == 0:
        try:
            run(
                home,
                STUDY,
                LocalGrid(SITES, behave),
                kept=Fatal(home, STUDY, when, number),
                hear=[fatal_listener(when, number)],
                strategy=Momentum(),
            )
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> ServerState:
    return run(tmp_path_factory.mktemp("whole"), STUDY, LocalGrid(SITES, behave), strategy=Momentum())


def same_bits(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return set(one) == set(other) and all(one[name].tobytes() == other[name].tobytes() for name in one)


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
@pytest.mark.parametrize(
    "when", ["before the round", "after the first reply", "before the save", "in the save", "after the save", "after the record"]
)
def test_killed_and_resumed_it_ends_with_the_same_bits(tmp_path: Path, whole: ServerState, when: str, number: int) -> None:
    home = tmp_path / "run"
    killed(home, when, number)
    grid = LocalGrid(SITES, behave)
    state = run(home, STUDY, grid, strategy=Momentum())
    assert same_bits(state.model, whole.model)
    assert same_bits(state.average, whole.average)
    assert same_bits(state.memory, whole.memory)
    assert (state.round, int(state.memory["calls"])) == (ROUNDS, ROUNDS)
    assert dict(state.last_rounds) == dict.fromkeys(SITES, ROUNDS)
    finished = number if when.startswith("after the") and when != "after the first reply" else number - 1
    assert said(home, "run_started") == [{"resumed_from": 0}, {"resumed_from": finished}]
    assert sorted({asked for asked, _, trains in grid.asked if trains}) == list(range(finished + 1, ROUNDS + 1))
    assert [stored.round for stored in RunStore(home / "rounds.sqlite").rounds(RUN_ID)] == list(range(1, ROUNDS + 1))
    assert [fact["round"] for fact in said(home, "round_done")] == list(range(1, ROUNDS + 1))
    assert all(outcomes(home, done) == dict.fromkeys(SITES, "update") for done in range(1, ROUNDS + 1))
    assert not list((home / "checkpoints").glob(".*"))


def test_a_round_that_was_checkpointed_and_not_recorded_is_completed_from_its_checkpoint(tmp_path: Path) -> None:
    home = tmp_path / "run"
    killed(home, "after the save", 2)
    store = RunStore(home / "rounds.sqlite")
    assert [stored.round for stored in store.rounds(RUN_ID)] == [1]
    run(home, STUDY, LocalGrid(SITES, behave), strategy=Momentum())
    second = [detail for number, detail in store.details(RUN_ID) if (number, detail.kind) == (2, "train")]
    assert sorted((detail.site, detail.outcome, detail.bytes_up > 0) for detail in second) == [(site, "update", True) for site in SITES]
    assert store.rounds(RUN_ID)[1].update_norm > 0


def test_a_damaged_checkpoint_costs_its_round_only_and_is_said(tmp_path: Path, whole: ServerState) -> None:
    home = tmp_path / "run"
    killed(home, "after the record", ROUNDS)
    path = home / "checkpoints" / f"round-{ROUNDS:05d}.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    grid = LocalGrid(SITES, behave)
    state = run(home, STUDY, grid, strategy=Momentum())
    assert same_bits(state.model, whole.model)
    (damage,) = said(home, "checkpoint_damaged")
    assert (damage["file"], damage["then"]) == (f"{path.name}.damaged", f"the checkpoint of round {ROUNDS - 1} is used")
    assert {asked for asked, _, trains in grid.asked if trains} == {ROUNDS}


def test_a_run_whose_checkpoints_are_all_damaged_or_gone_asks_nobody(tmp_path: Path) -> None:
    home, grid = tmp_path / "run", LocalGrid(SITES, behave)
    killed(home, "after the record", 1)
    path = home / "checkpoints" / "round-00001.safetensors"
    path.write_bytes(b"")
    with pytest.raises(StorageError, match="no checkpoint can be used"):
        run(home, STUDY, grid)
    assert said(home, "checkpoint_damaged")[0]["then"] == "the run ends"
    next((home / "checkpoints").glob("*.damaged")).unlink()
    with pytest.raises(StorageError, match="its checkpoints are gone"):
        run(home, STUDY, grid)
    assert grid.asked == []
    assert checkpoints(home, STUDY).latest() is None


def test_a_site_that_is_away_is_named_and_takes_part_again_when_it_is_back(tmp_path: Path) -> None:
    grid = LocalGrid(SITES, behave)

    def come_and_go(event: Event) -> None:
        if (event.name, event.facts.get("round")) == ("round_done", 1):
            grid.online.remove("bb")
        if (event.name, event.facts.get("round")) == ("round_done", 3):
            grid.online.add("bb")

    roster = dict.fromkeys(SITES, "") | {"left": "it may not take part: revoked"}
    state = run(tmp_path, make_study(rounds=4), grid, hear=[come_and_go], roster=lambda: roster)
    assert [outcomes(tmp_path, number).get("bb") for number in range(1, 5)] == ["update", "NO_REPLY", "NO_REPLY", "update"]
    assert reasons(tmp_path, 2) == {
        "bb": "no heartbeat: not connected when the round began",
        "left": "it may not take part: revoked",
    }
    assert [fact["round"] for fact in said(tmp_path, "site_refused") if fact["site"] == "bb"] == [2, 3]
    assert state.last_rounds["bb"] == 4


def test_a_run_that_goes_on_does_not_wait_long_for_a_site_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = tmp_path / "run"
    killed(home, "after the record", 1)
    monkeypatch.setattr("server.rounds.RESUME_SECONDS", 0.2)
    grid = LocalGrid(SITES, behave)
    grid.online.remove("bb")
    state = run(home, STUDY, grid, strategy=Momentum())
    assert (state.round, state.last_rounds["bb"]) == (ROUNDS, 1)
