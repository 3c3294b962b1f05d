# SPDX-License-Identifier: Apache-2.0
"""The survey's run: every site asked once, bad answers named, an interrupted run goes on where it was."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from common.errors import FederationError
from common.events import EventLog
from common.protocol import Evaluated, Instruction, Refusal, RefusalCode, Surveyed
from server.runs import RunStore
from server.surveys.loop import SurveyLoop
from server.surveys.record import PAGE_FILE, SurveyRecord
from tests.server.loops import said
from tests.server.surveys.noisy import RUN_ID, answer, site, surveyed
from tests.support.local_grid import LocalGrid

SITES = ("a", "bb", "ccc")


class SurveyGrid(LocalGrid):
    """Site `ccc` behaves as it is told, the others well."""

    def __init__(self, behaviour: str = "") -> None:
        super().__init__(SITES, lambda name, instruction: RecordDict())
        self.behaviour = behaviour

    def _answer(self, message: Message) -> Message:
        name, instruction = self._nodes[message.metadata.dst_node_id], Instruction.from_records(message.content)
        self.asked.append((instruction.round, name, instruction.train))
        assert instruction.model == {} and instruction.evaluate
        return Message(self._records(name, instruction), reply_to=message)

    def _records(self, name: str, instruction: Instruction) -> RecordDict:
        good = answer(surveyed(), name, site(60, 60))
        if name != "ccc" or not self.behaviour:
            return good.to_records()
        if self.behaviour == "paused":
            return Refusal(RefusalCode.PAUSED, name).to_records()
        if self.behaviour == "evaluated":
            return Evaluated(instruction.run_id, 0, name).to_records()
        tables = {
            "extra": {**good.tables, "more": np.zeros(1, np.int64)},
            "missing": {"patients": good.tables["patients"]},
            "shape": {**good.tables, "classes": np.zeros(7, np.int64)},
            "float": {**good.tables, "classes": np.zeros(2)},
            "huge": {**good.tables, "classes": np.array([10**13, 0])},
        }
        run_id = "f" * 32 if self.behaviour == "other run" else RUN_ID
        return Surveyed(run_id, 0, name, tables.get(self.behaviour, good.tables)).to_records()


def survey(folder: Path, grid: SurveyGrid, min_sites: int = 1) -> SurveyRecord:
    folder.mkdir(exist_ok=True)
    with closing(EventLog(folder / "events.jsonl", ())) as events:
        loop = SurveyLoop(
            grid,  # type: ignore[arg-type]
            surveyed(),
            RUN_ID,
            3,
            folder,
            RunStore(folder / "rounds.sqlite"),
            events,
            min_sites=min_sites,
            roster=lambda: dict.fromkeys(SITES, ""),
        )
        loop.run()
    return SurveyRecord.read(folder)


def test_every_site_is_asked_once_and_shown(tmp_path: Path) -> None:
    grid = SurveyGrid()
    record = survey(tmp_path, grid)
    assert sorted(grid.asked) == [(0, name, False) for name in SITES]
    assert sorted(record.tables) == list(SITES) and record.refused == {}
    assert (tmp_path / PAGE_FILE).exists()
    assert said(tmp_path, "surveyed") == [{"sites": 3, "refused": 0}]


@pytest.mark.parametrize(
    ("behaviour", "code"),
    [
        ("paused", "PAUSED"),
        ("evaluated", "REPLY_INVALID"),
        ("extra", "more was not asked for"),
        ("missing", "classes is missing"),
        ("shape", "expected int64"),
        ("float", "expected int64"),
        ("huge", "lies outside"),
        ("other run", "belongs to run"),
    ],
)
def test_an_answer_that_does_not_fit_is_named_and_left_out(tmp_path: Path, behaviour: str, code: str) -> None:
    record = survey(tmp_path, SurveyGrid(behaviour))
    assert sorted(record.tables) == ["a", "bb"]
    assert code in record.refused["ccc"]


def test_too_few_answers_end_the_run_and_it_goes_on_with_those_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="2 sites answered, 3 are needed"):
        survey(tmp_path, SurveyGrid("paused"), min_sites=3)
    before = SurveyRecord.read(tmp_path)
    grid = SurveyGrid()
    record = survey(tmp_path, grid, min_sites=3)
    assert grid.asked == [(0, "ccc", False)]
    assert record.refused == {} and all(record.tables[name] == before.tables[name] for name in before.tables)


def test_a_site_that_is_away_is_named(tmp_path: Path) -> None:
    grid = SurveyGrid()
    grid.online.discard("bb")
    study = surveyed().with_changes({"federation.round_timeout_seconds": 0.3})
    with closing(EventLog(tmp_path / "events.jsonl", ())) as events:
        store = RunStore(tmp_path / "rounds.sqlite")
        loop = SurveyLoop(grid, study, RUN_ID, 3, tmp_path, store, events, roster=lambda: dict.fromkeys(SITES, ""))  # type: ignore[arg-type]
        loop.run()
    assert SurveyRecord.read(tmp_path).refused == {"bb": "no heartbeat: not connected"}
