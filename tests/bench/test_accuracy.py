# SPDX-License-Identifier: Apache-2.0
"""The benchmark's own arithmetic and book-keeping: its runs are too long for a test."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from simulations.results import Measurement, RunResult
from tests.bench import accuracy
from tests.bench.accuracy_page import page
from tests.bench.accuracy_rows import NO_PRIVACY, ROWS, SEEDS, Job, Row, jobs_of, rows_named
from tests.bench.accuracy_table import Finding, Summary, figures_table, finding_of, measured_table, seeds_table, trivial_table
from tests.simulations import sample_run

ROW = Row("some", "some row", "chest-xray-scattering", required=0.9, required_each=0.85, stretch=0.95)


def finding(seed: int, auroc: float, **facts: Any) -> Finding:
    empty = Finding(seed, auroc, epsilon=None, pooled=None, worst_site=None, trivial={"border": 0.9})
    return replace(empty, **facts)


def test_every_row_is_a_study_with_delta_and_local_privacy_as_the_protocol_says() -> None:
    for row in ROWS:
        privacy = row.study_of(3).model_dump()["privacy"]
        assert row.study_of(3).seed == 3
        assert privacy["unit"] == ("none" if row.name.endswith("-none") else "patient")
        if privacy["unit"] == "patient":
            assert (privacy["delta"], privacy["mode"]) == (1e-5, "local")
            assert row.name.endswith(f"-e{privacy['epsilon']:g}")


def test_names_of_rows_choose_in_the_order_of_the_table_and_a_wrong_one_is_named() -> None:
    assert [row.name for row in rows_named(["cnn-e1", "scattering-e3"])] == ["scattering-e3", "cnn-e1"]
    assert rows_named([]) == ROWS
    with pytest.raises(ValueError, match=r"no such row: cnn-e7; there are scattering-e3, .*pneumoniamnist-none"):
        rows_named(["cnn-e7", "cnn-e1"])


def test_mean_deviation_and_worst_seed_by_hand() -> None:
    summary = Summary(ROW, (finding(0, 0.90), finding(1, 0.94), finding(2, 0.98)))
    assert summary.mean == pytest.approx(0.94)
    assert summary.deviation == pytest.approx(0.04)  # ((0.04² + 0 + 0.04²) / (3 - 1))^½
    assert summary.least == 0.90
    assert summary.shortfalls == []
    assert Summary(ROW, (finding(0, 0.9),)).deviation is None


def test_a_figure_that_falls_short_says_how() -> None:
    assert Summary(ROW, (finding(0, 0.84), finding(1, 0.94))).shortfalls == ["mean 0.8900 is below 0.9", "one seed has 0.8400, below 0.85"]
    assert Summary(ROW, (finding(0, 0.84), finding(1, 0.99))).shortfalls == ["one seed has 0.8400, below 0.85"]
    assert Summary(replace(ROW, required=None, required_each=None), (finding(0, 0.1),)).shortfalls == []


def test_the_table_shows_means_demands_and_how_many_seeds_there_are() -> None:
    good = Summary(ROW, (finding(0, 0.95, epsilon=2.9, worst_site=0.7, pooled=0.97), finding(1, 0.97, epsilon=2.95, worst_site=0.8)))
    bad = Summary(ROW, (finding(0, 0.84),))
    header, _, first, second = figures_table([good, bad], 2).splitlines()
    assert header.count("|") == first.count("|") == second.count("|")
    assert (
        first
        == "| some row | 2 | 0.9600 ± 0.0141 | 0.9500 | ≥ 0.9, each ≥ 0.85: met; reaches 0.95 | – | 0.7500 | 0.9700 (1 seeds) | 2.950 |"
    )
    assert second == "| some row | 1 of 2 | 0.8400 | 0.8400 | ≥ 0.9, each ≥ 0.85: **missed** so far; not 0.95 | – | – | – | none |"


def test_the_measured_table_has_the_exact_figure_beside() -> None:
    assert measured_table([Summary(ROW, (finding(0, 0.9),))]) == ""
    measured = Measurement(round=100, sites=4, auroc=0.93, standard_error=0.02, exact=0.96)
    both = Summary(ROW, (finding(0, 0.9), finding(1, 0.95, measured=measured)))
    assert measured_table([both]).splitlines()[2:] == ["| some row | 1 | 0.9600 | 0.9300 | 0.0200 | -1.5 |"]
    assert "| 0.9300 (se 0.020) |" in figures_table([both], 2)
    lost = Summary(ROW, (finding(1, 0.95, measured=measured.model_copy(update={"auroc": None})),))
    assert measured_table([lost]).splitlines()[2] == "| some row | 1 | 0.9600 | – | 0.0200 | – |"


def test_every_seed_is_shown_with_its_engine() -> None:
    one = Summary(ROW, (finding(0, 0.9, engine="opacus"), finding(2, 0.95, engine="opacus")))
    two = Summary(ROW, (finding(0, 0.9, engine="opacus"), finding(2, 0.95, engine="bookkeeping")))
    assert seeds_table([one, two]).splitlines()[2:] == [
        "| some | 0, 2 | 0.9000 0.9500 | opacus |",
        "| some | 0, 2 | 0.9000 0.9500 | opacus bookkeeping |",
    ]


def test_trivial_baselines_are_shown_once_for_each_task() -> None:
    same = [Summary(replace(ROW, name=name), (finding(0, 0.9),)) for name in ("a", "b")]
    other = Summary(replace(ROW, study="chest-xray-bacterial"), (finding(0, 0.9, trivial={"border": 0.6}),))
    lines = trivial_table([*same, other]).splitlines()
    assert len(lines) == 4
    assert lines[2].endswith("| 0.9000 |")
    assert lines[3].startswith("| bacterial or viral, 64x64")
    assert lines[3].endswith("| 0.6000 |")


def test_a_run_in_numbers() -> None:
    result = sample_run.sample_run()
    found = finding_of(result)
    assert found.auroc == result.federated.metrics["auroc"]
    assert found.worst_site == min(model.metrics["auroc"] or 2 for model in result.alone.values())
    assert found.epsilon == max(site.epsilon or 0 for site in result.sites)
    last = Measurement(round=result.rounds, sites=4, auroc=0.9, standard_error=0.02, exact=0.91)
    earlier = last.model_copy(update={"round": 1})
    assert finding_of(result.model_copy(update={"measured": [earlier, last]})).measured == last
    assert finding_of(result.model_copy(update={"measured": [earlier]})).measured is None
    unmeasured = result.federated.model_copy(update={"metrics": {"auroc": None}})
    with pytest.raises(ValueError, match="no AUROC"):
        finding_of(result.model_copy(update={"federated": unmeasured}))


def test_the_folder_of_a_job_changes_with_everything_that_decides_its_result() -> None:
    folders = {
        Job(row, seed).folder.name.rpartition("-")[2]
        for row in (ROW, replace(ROW, partition="dirichlet:0.3"), replace(ROW, changes=NO_PRIVACY), replace(ROW, baseline_seeds=2))
        for seed in (0, 1)
    }
    assert len(folders) == 8
    assert Job(replace(ROW, title="other", required=0.1), 0).folder == Job(ROW, 0).folder


def test_only_missing_runs_are_made_and_the_page_lists_what_is_still_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, float]] = []

    def run(job: Job, options: object, follower: object) -> None:
        folder = tmp_path / job.folder
        folder.mkdir(parents=True)
        asked.append((job.folder, job.seed))
        result: RunResult = sample_run.sample_run()
        result.model_copy(update={"seed": job.seed}).write(folder / "results.json")

    monkeypatch.setattr(accuracy, "_run", run)
    cut = ["--rows", "cnn-none", "--out", str(tmp_path)]
    accuracy.main([*cut, "--seeds", "0,1"])
    accuracy.main([*cut, "--seeds", "1,2"])
    assert [seed for _, seed in asked] == [0, 1, 2]
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    assert "- `cnn-none`, seeds 3, 4\n" in text
    assert "- `cnn-e3`, seeds 0, 1, 2, 3, 4\n" in text
    assert "| cnn from scratch, no privacy | 3 of 5 |" in text


def test_a_whole_page_without_holes_says_nothing_is_missing() -> None:
    summaries = [Summary(row, tuple(finding(seed, 0.99) for seed in SEEDS)) for row in ROWS]
    text = page(summaries, [], len(SEEDS), "Ten settings were tried.\n")
    assert "Not measured yet" not in text
    assert "Nobody may sell these figures as clinical value" in text
    assert "Ten settings were tried." in text
    assert len(list(jobs_of(ROWS, SEEDS))) == len(ROWS) * 5
