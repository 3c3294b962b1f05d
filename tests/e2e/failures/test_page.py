# SPDX-License-Identifier: Apache-2.0
"""docs/failures.md has exactly one row for each scenario that exists, and is what the rows make; the rows are made as they should be."""

from dataclasses import replace
from pathlib import Path

import pytest

from simulations.loopback import Loopback
from tests.e2e.failures.__main__ import DOCS, scenarios
from tests.support.failure_page import COLUMNS, collected, in_short, merged, render, store, stored
from tests.support.failures import FailureRow, Recorder, plain_words
from tests.support.sightings import Seen
from tests.support.wholeness import Charged, Whole

ROW = FailureRow("test_a", "gateway killed", "SIGKILL", "log: no `answer` | none", 1.04, "up: -9", 0.5, 0.5, 12.34, 4, 0, 0, ())
WHOLE = Whole(4, 0, 0, ("alpha in round 2 (NO_REPLY)",), ())


def test_the_page_has_exactly_one_row_for_each_scenario() -> None:
    assert [row.scenario for row in stored(DOCS)] == scenarios()


def test_the_page_is_what_its_rows_make() -> None:
    assert (DOCS / "failures.md").read_text(encoding="utf-8") == render(stored(DOCS))


def test_nothing_was_lost_and_nothing_charged_twice() -> None:
    rows = stored(DOCS)
    assert rows
    assert {(row.rounds_lost, row.charges_doubled) for row in rows} == {(0, 0)}


def test_a_row_becomes_one_line_of_the_table() -> None:
    line = render([ROW]).splitlines()[-1]
    assert line == (
        "| gateway killed | SIGKILL | <q>log: no answer \\| none</q> (after 1.0 s) | <q>up: -9</q> (after 0.5 s) "
        "| 0.5 s | 12.3 s | 0 | 0 | nothing |"
    )
    assert line.replace("\\|", "").count("|") == len(COLUMNS) + 1


def test_who_saw_nothing_and_what_was_missed_are_said() -> None:
    missed = (*(f"beta in round {number} (NO_REPLY)" for number in (2, 3, 4)), "alpha in round 2 (X)")
    line = render([replace(ROW, site_saw="", site_seconds=None, missed=missed, remark="Why.")]).splitlines()[-1]
    assert "| SIGKILL. Why. | nothing |" in line
    assert line.endswith("| beta in rounds 2 to 4 (NO_REPLY), alpha in round 2 (X) |")
    assert in_short([*missed[:1], missed[2]]) == "beta in rounds 2, 4 (NO_REPLY)"


def test_rows_are_stored_and_read_again(tmp_path: Path) -> None:
    rows = [ROW, replace(ROW, scenario="test_b", missed=("a in round 1 (x)",))]
    store(rows, tmp_path)
    assert stored(tmp_path) == rows
    assert (tmp_path / "failures.md").read_text(encoding="utf-8") == render(rows)
    assert stored(tmp_path / "nowhere") == []


def test_a_part_of_the_suite_replaces_only_its_own_rows() -> None:
    other, newer = replace(ROW, scenario="test_b"), replace(ROW, done="anew")
    gone = replace(ROW, scenario="test_gone")
    assert merged([ROW, other, gone], {"test_a": newer}, ["test_b", "test_a", "test_c"]) == [other, newer]
    assert merged([ROW, other], {"test_a": None}, ["test_a", "test_b"]) == [other], "a scenario that failed keeps no older row"


def test_a_scenario_leaves_its_row_or_that_it_has_none(tmp_path: Path) -> None:
    federation = Loopback(tmp_path, ports=(1, 2))
    good, bad = Recorder("test_good", tmp_path / "rows"), Recorder("test_bad[NaN/1]", tmp_path / "rows")
    with good.fault("f", "d", federation) as incident:
        incident.began = 1000.0
        incident.site_saw(lambda since: Seen(since + 2.0, "site"))
        incident.coordinator_saw(lambda since: Seen(since + 3.0, f"{tmp_path}/logs ended, process 123"))
        incident.healed()
        incident.ended = 1010.0
        incident.recovered(lambda since: Seen(since + 4.0, "done"))
        incident.is_whole(WHOLE)
    with pytest.raises(ZeroDivisionError), bad.fault("f", "d", federation):
        raise ZeroDivisionError
    found = collected(tmp_path / "rows")
    assert found["test_bad[NaN/1]"] is None
    row = found["test_good"]
    assert row is not None
    assert (row.notice_seconds, row.site_seconds, row.coordinator_seconds, row.recover_seconds) == (2.0, 2.0, 3.0, 4.0)
    assert (row.coordinator_saw, row.missed) == ("/logs ended, process N", WHOLE.missed)
    assert good.has_begun and bad.has_begun and not Recorder("test_c", None).has_begun


@pytest.mark.parametrize("left_out", ["recovery", "whole", "sightings"])
def test_a_scenario_that_does_not_say_all_makes_no_row(tmp_path: Path, left_out: str) -> None:
    recorder = Recorder("test_x", tmp_path)
    with pytest.raises(AssertionError), recorder.fault("f", "d", Loopback(tmp_path, ports=(1, 2))) as incident:
        if left_out != "sightings":
            incident.site_saw(lambda since: Seen(since, "x"))
        if left_out != "recovery":
            incident.recovered(lambda since: Seen(since, "x"))
        if left_out != "whole":
            incident.is_whole(WHOLE)
    assert collected(tmp_path) == {"test_x": None}


def test_what_differs_from_run_to_run_is_not_shown(tmp_path: Path) -> None:
    federation = Loopback(tmp_path, ports=(4711, 2))
    said = f"{tmp_path}/a: https://127.0.0.1:4711, 127.0.0.1:99, process 12, node 1234567890123456789, run 1e048f236b85, round 12"
    assert plain_words(said, federation) == "/a: https://coordinator, 127.0.0.1:PORT, process N, node N, run ID, round 12"
    assert len(plain_words("x " * 1000, federation)) <= 320


def test_what_must_never_be_is_found() -> None:
    def problems(charges: int, states: list[str], left: set[str]) -> tuple[int, int]:
        one = Charged("alpha", ("r", 1), charges, states, left)
        return len(one.problems), one.doubled

    assert problems(1, ["reserved", "releasing", "sent"], {"x"}) == (0, 0)
    assert problems(1, ["reserved"], set()) == (0, 0)
    assert problems(0, ["reserved", "settled"], set()) == (0, 0)
    assert problems(2, ["reserved", "reserved"], {"x"}) == (1, 1)
    assert problems(1, ["reserved", "releasing", "sent"], {"x", "y"}) == (1, 1)
    assert problems(0, [], {"x"}) == (1, 0)
    assert problems(1, ["reserved", "releasing", "sent"], set()) == (1, 0)
