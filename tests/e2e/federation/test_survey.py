# SPDX-License-Identifier: Apache-2.0
"""A survey through the real federation: offered, approved, answered by real daemons, shown; paid once, and kept apart from training."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.survey_plan import WEIGHT, survey_plan, survey_study
from simulations.loopback import wait_for_end
from tests.support.federation import HONEST, Federation
from tests.support.studies import write_study

SITE = HONEST[0]


@pytest.mark.slow
def test_a_survey_is_approved_answered_shown_and_paid_on_both_lines(federation: Federation, tmp_path: Path) -> None:
    study = federation.study("surveyed", survey={"epsilon": 0.4})
    survey = survey_study(study)
    plan = survey_plan(survey)
    assert plan is not None
    options = ("--out", str(tmp_path / "page.html"), "--json")
    started = federation.on_server_in_background("survey", write_study(study, tmp_path), "--sites", ",".join(HONEST), *options)
    for name in HONEST:
        federation.wait_for_offer(federation.hospitals[name], survey.id, started)
        shown = federation.approve(federation.hospitals[name], survey.id)
        assert "Nothing is trained" in shown.out and "Table 3: patients by label: normal, opacity" in shown.out
    wait_for_end(started, 180)
    run_id = str(federation.rows("SELECT run_id FROM offer WHERE study_id = ?", survey.id)[0]["run_id"])
    found = json.loads((federation.coordinator / "runs" / run_id / "survey.json").read_text(encoding="utf-8"))
    assert sorted(found["tables"]) == sorted(HONEST) and found["refused"] == {}
    assert "how alike are the sites" in (tmp_path / "page.html").read_text(encoding="utf-8")
    for name in HONEST:
        patients = found["tables"][name]["patients"][0] / WEIGHT
        assert abs(patients - 100) < 20 * plan.standard_error
        assert {table: (len(cells),) for table, cells in found["tables"][name].items()} == plan.shapes
    _check_records(federation, survey.id)
    _check_shown_again(federation, run_id, found)


def _check_records(federation: Federation, survey_id: str) -> None:
    """One line in the log of what left, charges on both lines, sent, and an audit that fits."""
    (line,) = [line for line in federation.exits(SITE) if line["study_id"] == survey_id]
    tables = {field[0]: (field[1], tuple(field[2])) for field in line["fields"] if field[0].startswith("tables/")}
    assert line["kind"] == "surveyed" and set(tables.values()) <= {("int64", (size,)) for size in (1, 2, 5, 16)} and len(tables) == 4
    rows = [row for row in federation.ledger_rows(SITE) if row.get("key", {}).get("study_id") == survey_id]
    assert [(row["state"], row["key"]["line"]) for row in rows[:2]] == [("reserved", "training"), ("reserved", "held-out")]
    assert {(row["state"], row["key"]["line"]) for row in rows[2:]} == {
        (state, line) for state in ("releasing", "sent") for line in ("training", "held-out")
    }
    federation.at(federation.hospitals[SITE], "egress", "--verify")


def _check_shown_again(federation: Federation, run_id: str, found: dict[str, object]) -> None:
    """Nobody is asked and nobody pays."""
    before = len(federation.ledger_rows(SITE))
    again = federation.on_server("survey", "--run", run_id, "--json").json
    assert again["sites"][SITE]["tables"]["patients"]["patients"] * WEIGHT == found["tables"][SITE]["patients"][0]  # type: ignore[index]
    assert np.isfinite(again["noise"]) and len(federation.ledger_rows(SITE)) == before
