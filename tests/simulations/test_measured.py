# SPDX-License-Identifier: Apache-2.0
"""The privately measured AUROC where people see it: report, table, --json and plan."""

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from client.scores import SiteScores
from client.site import evaluation_path
from common.evaluation_plan import evaluation_plan
from simulations.commands.plan import plan_study, print_plan
from simulations.measured import exact_auroc
from simulations.options import RunOutcome
from simulations.report import write_report
from simulations.results import Measurement, RunResult
from simulations.summary import print_summary, run_summary
from tests.simulations.sample_run import sample_run
from tests.support.studies import PRIVATE, small

MEASURED = Measurement(round=8, sites=4, auroc=0.9312, standard_error=0.0271, exact=0.9457)
DROWNED = Measurement(round=4, sites=4, auroc=None, standard_error=0.081, exact=0.9234)


def result(*measured: Measurement) -> RunResult:
    sites = [site.model_copy(update={"held_out_epsilon": 0.99999}) for site in sample_run().sites]
    return sample_run().model_copy(update={"measured": list(measured), "sites": sites})


def summary(tmp_path: Path, *results: RunResult) -> tuple[dict, str]:
    outcomes = [RunOutcome(tmp_path, tmp_path / "report.html", each) for each in results]
    console = Console(record=True, width=200, file=io.StringIO())
    found = run_summary(outcomes, tmp_path)
    print_summary(found, outcomes, console)
    return found, console.export_text()


def test_the_report_shows_it_beside_the_exact_figure(tmp_path: Path) -> None:
    page = write_report(result(DROWNED, MEASURED), tmp_path / "report.html").read_text()
    assert "measured privately" in page
    assert ">0.931<" in page
    assert ">0.027<" in page
    assert ">0.946<" in page
    assert "not measurable" in page
    assert "8 (final model)" in page
    assert page.count("<td>1.00</td>") == 4, "each site's held-out patients, rounded up"


def test_a_report_of_a_run_without_it_says_nothing_of_it(tmp_path: Path) -> None:
    page = write_report(sample_run(), tmp_path / "report.html").read_text()
    assert "What real hospitals would learn" not in page
    assert "measured privately</span>" not in page
    assert "ε spent<small>held-out" not in page


def test_json_and_table(tmp_path: Path) -> None:
    found, text = summary(tmp_path, result(MEASURED))
    assert found["auroc"]["private"] == {"value": 0.9312, "standard_error": 0.0271}
    assert found["epsilon_held_out"] == dict.fromkeys(("north", "east", "south", "west"), 0.99999)
    assert "from noisy histograms (held-out patients spend ε 1.00): 0.931, standard error 0.027" in text


def test_not_measurable_and_not_measured(tmp_path: Path) -> None:
    found, text = summary(tmp_path, result(DROWNED))
    assert found["auroc"]["private"] == "not measurable"
    assert "not measurable" in text
    found, text = summary(tmp_path, sample_run())
    assert found["auroc"]["private"] is None
    assert "noisy histograms" not in text


def test_several_seeds_give_the_mean_of_those_that_could_be_measured(tmp_path: Path) -> None:
    other = MEASURED.model_copy(update={"auroc": 0.9412, "standard_error": 0.0291})
    found, _ = summary(tmp_path, result(MEASURED), result(other), result(DROWNED))
    assert found["auroc"]["private"] == pytest.approx({"value": 0.9362, "standard_error": 0.0281})


def test_results_survive_their_file(tmp_path: Path) -> None:
    result(MEASURED).write(tmp_path / "results.json")
    assert RunResult.read(tmp_path / "results.json").measured == [MEASURED]


def test_the_plan_predicts_the_standard_error() -> None:
    study = small(PRIVATE, **{"evaluation.private": {}})
    facts = plan_study(study, patients=440, sites=4)
    plan = evaluation_plan(study)
    assert (facts["evaluation_epsilon"], facts["evaluations"], facts["held_out_patients"]) == (1.0, 1, 110)
    assert facts["standard_error"] == plan.predicted_standard_error(4, 440)
    assert plan_study(study, None)["standard_error"] is None
    nominal = study.with_changes({"evaluation.private.held_out_patients": 500})
    assert plan_study(nominal, None)["standard_error"] == plan.predicted_standard_error(2, 1000)
    assert plan_study(small(PRIVATE), 440)["evaluation_epsilon"] is None
    console = Console(record=True, width=120, file=io.StringIO())
    print_plan(facts, console)
    assert "their standard error to expect" in console.export_text()


def test_the_exact_figure_counts_patients_not_images(tmp_path: Path) -> None:
    """Patient 1: images .9 and .1, labelled 1 once; patient 2: .4, labelled 0; patient 3: .6, labelled 0. Of two pairs one is right."""
    scores = SiteScores(np.arange(4), np.array([1, 0, 0, 0]), np.array([1, 1, 2, 3]), np.array([0.9, 0.1, 0.4, 0.6], np.float32))
    scores.write(evaluation_path(tmp_path / "a", 3))
    assert exact_auroc([tmp_path / "a", tmp_path / "silent"], 3, 1) == 0.5
    assert exact_auroc([tmp_path / "silent"], 3, 1) is None
    one_class = SiteScores(scores.rows, np.zeros(4, np.int64), scores.patients, scores.scores)
    one_class.write(evaluation_path(tmp_path / "b", 3))
    assert exact_auroc([tmp_path / "b"], 3, 1) is None
