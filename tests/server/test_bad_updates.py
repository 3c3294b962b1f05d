# SPDX-License-Identifier: Apache-2.0
"""What a rogue site sends is named and left out; three times, and the site is suspended until it is readmitted."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from common.errors import FederationError
from common.events import Event
from common.protocol import Instruction, Refusal, RefusalCode, Update
from server.aggregation import Aggregation
from server.replies import Answer
from server.runs import STRIKES, RunStore
from tests.server.loops import RUN_ID, SITES, make_study, outcomes, reasons, run, said
from tests.support.apps import spoiled_update
from tests.support.local_grid import LocalGrid

INVALID = {
    "nan": "not finite",
    "inf": "not finite",
    "1e30": "L2 norm",
    "huge": "L2 norm",
    "float64": "float64, expected float32",
    "float16": "float16, expected float32",
    ">f4": "expected float32",
    "int32": "int32, expected float32",
    "shape": "shape",
    "names": "was not asked for",
    "extra": "tensor extra was not asked for",
    "missing": "is missing",
    "replay": "not to round",
    "other run": "belongs to run",
    "examples": "num-examples",
    "float examples": "num-examples",
    "loss": "num-examples",
    "no metrics": "metrics",
}


class Rogue:
    """Site `ccc` behaves as it is told, the others well."""

    def __init__(self, behaviour: str = "") -> None:
        self.behaviour = behaviour
        self.grid = LocalGrid(SITES, self)

    def __call__(self, site: str, instruction: Instruction) -> RecordDict:
        if site == "ccc" and self.behaviour == "refuse":
            return Refusal(RefusalCode.TRAINING_FAILED, site).to_records()
        if site == "ccc" and self.behaviour == "stranger":
            return RecordDict({"hello": ConfigRecord({"x": 1})})
        return spoiled_update(instruction, site, self.behaviour if site == "ccc" else "")

    def trained(self, site: str) -> list[int]:
        return [number for number, name, trains in self.grid.asked if (name, trains) == (site, True)]


@pytest.mark.parametrize("behaviour", [*INVALID, "stranger"])
def test_a_bad_update_is_named_and_left_out(tmp_path: Path, behaviour: str) -> None:
    alone = run(tmp_path / "good", make_study(rounds=1), LocalGrid(SITES[:2], Rogue()))
    state = run(tmp_path, make_study(rounds=1), Rogue(behaviour).grid)
    assert outcomes(tmp_path, 1) == {"a": "update", "bb": "update", "ccc": "REPLY_INVALID"}
    assert INVALID.get(behaviour, "") in reasons(tmp_path, 1)["ccc"]
    refused = said(tmp_path, "site_refused")
    assert [(fact["site"], fact["code"], fact["reason"]) for fact in refused] == [("ccc", "REPLY_INVALID", reasons(tmp_path, 1)["ccc"])]
    assert all(np.array_equal(state.model[name], alone.model[name]) for name in state.model)


def test_the_norm_limit_is_the_studys(tmp_path: Path) -> None:
    """Seven values of 2,000 have an L2 norm of 5,292."""
    run(tmp_path / "default", make_study(rounds=1), Rogue("long").grid)
    assert outcomes(tmp_path / "default", 1)["ccc"] == "update"
    run(tmp_path / "tight", make_study(rounds=1, update_norm_limit=5291.0), Rogue("long").grid)
    assert reasons(tmp_path / "tight", 1) == {"ccc": "an update of L2 norm 5.29e+03; federation.update_norm_limit is 5291"}
    run(tmp_path / "loose", make_study(rounds=1, update_norm_limit=5292.0), Rogue("long").grid)
    assert outcomes(tmp_path / "loose", 1)["ccc"] == "update"


def test_a_norm_that_float32_cannot_hold_is_a_norm() -> None:
    aggregation = Aggregation({"w": (4,)}, make_study().federation)
    delta = {"w": np.full(4, 3e38, np.float32)}
    verdict = aggregation.take(Answer("a", Update(RUN_ID, 1, "a", delta), 0.1))
    assert (verdict.code, aggregation.updates) == (RefusalCode.REPLY_INVALID, 0)
    assert "6e+38" in verdict.reason


def test_a_site_counts_once_in_a_round() -> None:
    aggregation = Aggregation({"w": (1,)}, make_study().federation)
    answers = [Answer("a", Update(RUN_ID, 1, "a", {"w": np.array([value], np.float32)}), 0.1) for value in (1.0, 5.0)]
    verdicts = [aggregation.take(answer) for answer in answers]
    assert [(verdict.name, verdict.outcome) for verdict in verdicts] == [("a", "update"), ("a (again)", "REPLY_INVALID")]
    assert aggregation.total.mean()["w"].tolist() == [1.0]


def test_three_strikes_suspend_a_site_for_the_run(tmp_path: Path) -> None:
    rogue = Rogue("nan")
    state = run(tmp_path, make_study(rounds=6), rogue.grid)
    assert state.round == 6
    assert rogue.trained("ccc") == [1, 2, 3]
    assert rogue.trained("a") == [1, 2, 3, 4, 5, 6]
    assert [name for _, name, trains in rogue.grid.asked if not trains] == ["a", "bb"], "no evaluation either"
    (suspended,) = said(tmp_path, "site_suspended")
    assert (suspended["round"], suspended["site"], len(suspended["reasons"])) == (3, "ccc", STRIKES)
    known = RunStore(tmp_path / "rounds.sqlite").suspended(RUN_ID)
    assert list(known) == ["ccc"]
    assert known["ccc"][0].startswith("round 1: ")
    assert "not finite" in known["ccc"][2]
    assert "ccc" not in outcomes(tmp_path, 4)
    assert state.last_rounds == {"a": 6, "bb": 6}


def test_too_few_that_remain_are_told_whom_to_readmit(tmp_path: Path) -> None:
    """The third strike of one site, and another that is away: what is wrong and the command are in the message, also after a resume."""
    rogue, study = Rogue("1e30"), make_study(rounds=6, round_timeout_seconds=0.2)

    def lose_one(event: Event) -> None:
        if event.name == "site_suspended":
            rogue.grid.online.remove("bb")

    for attempt in range(2):
        with pytest.raises(FederationError) as refused:
            run(tmp_path, study, rogue.grid, hear=[lose_one])
        assert "1 sites are online after 0 s, the study needs 2" in str(refused.value)
        assert "ccc: round 3: an update of L2 norm" in str(refused.value), attempt
        assert f"`wardround-server readmit {RUN_ID[:8]} ccc`" in str(refused.value)
    assert rogue.trained("ccc") == [1, 2, 3]
    with pytest.raises(FederationError, match=r"2 sites remain, the study needs 3\. Suspended after three bad updates: ccc"):
        run(tmp_path, study, rogue.grid, min_sites=3)
    RunStore(tmp_path / "rounds.sqlite").pardon(RUN_ID, "ccc")
    rogue.behaviour = ""
    run(tmp_path, study, rogue.grid)
    assert rogue.trained("ccc") == [1, 2, 3, 4, 5, 6]


def test_a_pardon_counts_while_the_run_goes_on(tmp_path: Path) -> None:
    rogue = Rogue("nan")

    def readmit(event: Event) -> None:
        if (event.name, event.facts.get("round")) == ("round_done", 4):
            rogue.behaviour = ""
            RunStore(tmp_path / "rounds.sqlite").pardon(RUN_ID, "ccc")

    run(tmp_path, make_study(rounds=6), rogue.grid, hear=[readmit])
    assert rogue.trained("ccc") == [1, 2, 3, 5, 6]


def test_a_refusal_is_no_strike(tmp_path: Path) -> None:
    run(tmp_path, make_study(rounds=5), Rogue("refuse").grid)
    assert RunStore(tmp_path / "rounds.sqlite").suspended(RUN_ID) == {}
    assert outcomes(tmp_path, 5)["ccc"] == "TRAINING_FAILED"


def test_strikes_are_counted_by_run_site_and_round(tmp_path: Path) -> None:
    store = RunStore(tmp_path / "rounds.sqlite")
    for _ in range(5):
        store.strike("run", 1, "a", "the same bytes again after a crash")
    store.strike("run", 2, "a", "second")
    for number in range(1, 3):
        store.strike("run", number, "b", "b")
        store.strike("other", number + 2, "a", "another run")
    assert store.suspended("run") == {}
    store.strike("run", 7, "a", "third")
    assert RunStore(tmp_path / "rounds.sqlite").suspended("run") == {"a": ["the same bytes again after a crash", "second", "third"]}
    store.pardon("run", "b")
    store.pardon("run", "a")
    assert store.suspended("run") == {}
    store.strike("run", 8, "a", "a fresh start")
    assert store.suspended("run") == {}


def test_a_site_without_a_weight_is_not_asked(tmp_path: Path) -> None:
    """It would train, and spend its patients' budget, for an update that cannot count."""
    rogue, study = Rogue(), make_study(rounds=4, weights={"a": 1.0, "bb": 3.0})
    run(tmp_path, study, rogue.grid, roster=lambda: dict.fromkeys(SITES, ""))
    assert {name for _, name, _ in rogue.grid.asked} == {"a", "bb"}
    assert [outcomes(tmp_path, number)["ccc"] for number in (1, 4)] == ["NO_REPLY", "NO_REPLY"]
    assert reasons(tmp_path, 1) == {"ccc": "federation.weights gives it no weight, so it is not asked"}
    assert RunStore(tmp_path / "rounds.sqlite").suspended(RUN_ID) == {}
    with pytest.raises(FederationError, match=r"2 sites remain, the study needs 3; federation\.weights leaves out ccc"):
        run(tmp_path / "few", study, rogue.grid, min_sites=3, roster=lambda: dict.fromkeys(SITES, ""))
