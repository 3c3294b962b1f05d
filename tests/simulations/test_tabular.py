# SPDX-License-Identifier: Apache-2.0
"""A tabular study in the simulation: the real hospitals as sites, results, report, description; and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from common.data.cohort import Dataset, Split
from common.data.store import materialise
from common.errors import InputError
from common.study import Study
from common.study_file import load_study
from simulations.audit.run import AuditOptions, audit_study
from simulations.commands.describe import describe_data
from simulations.options import RunOptions, find_study
from simulations.results import RunResult
from simulations.run import run_study
from simulations.trivial import ONE_FEATURE, trivial_baselines
from tests.bench.heart_data import split_words, write_split
from tests.bench.heart_page import page, shortfalls
from tests.bench.heart_rows import LEVELS, Job, finding_of, jobs
from tests.support.tables import HEART

SITES = ["cleveland", "hungarian", "switzerland", "va"]


def heart() -> Study:
    return load_study(find_study("heart-disease-strict"))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return materialise(heart().data, HEART, tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunResult, Path]:
    """Two rounds of the shipped study on FLamby's split, by the real server and client."""
    folder = tmp_path_factory.mktemp("heart")
    job = Job(LEVELS[-1], "flamby", 0)
    options = RunOptions(
        study=job.study.with_changes({"federation.rounds": 2}),
        out=folder / "run",
        data=write_split(HEART, folder / "data", job.split_seed),
        threads=1,
        baselines=False,
    )
    (outcome,) = run_study(options, ())
    assert outcome.result is not None
    return outcome.result, outcome.report


def test_each_real_hospital_is_a_site_with_flambys_patients(run: tuple[RunResult, Path]) -> None:
    result, _ = run
    assert [site.name for site in result.sites] == SITES
    assert [site.patients["train"] for site in result.sites] == [199, 172, 30, 85]
    assert [site.patients["test"] for site in result.sites] == [104, 89, 16, 45]
    assert all(site.epsilon is not None and 0.9 < site.epsilon <= 1 for site in result.sites)


def test_accuracy_of_a_run_is_of_its_scores(run: tuple[RunResult, Path]) -> None:
    result, _ = run
    test = result.federated.test
    hits = (np.array(test.scores) >= 0.5) == np.array(test.labels)
    assert result.federated.metrics["accuracy"] == pytest.approx(hits.mean())
    found = finding_of(result)
    assert found.mean == pytest.approx(np.mean([result.federated.per_site[name]["accuracy"] for name in SITES]))
    assert 0.5 < found.mean < 0.95 and found.pooled == pytest.approx(hits.mean())


def test_the_report_speaks_of_a_table(run: tuple[RunResult, Path]) -> None:
    result, report = run
    text = report.read_text(encoding="utf-8")
    assert "a table of 10 columns, 15 features" in text and "Held-out rows" in text and "On 254 rows of 254 held-out patients" in text
    assert "pixels" not in text and "grey squares" not in text
    assert result.examples == [] and set(result.trivial) == {ONE_FEATURE}


def test_the_best_single_feature_by_hand() -> None:
    labels = np.array([0, 0, 1, 1, 0, 1, 0, 1])
    features = np.array([[0, 4], [0, 3], [1, 2], [0, 1], [9, 2], [9, 1], [9, 5], [9, 6]], dtype=np.float32)
    split = np.array([Split.TRAIN] * 4 + [Split.TEST] * 4, dtype=np.uint8)
    owners = np.arange(8)
    table = Dataset(
        np.empty((8, 0, 0, 0), np.uint8), labels, owners, tuple("abcdefgh"), ("a", "b"), {}, split, None, False, "0" * 64, features=features
    )
    # The second feature, downwards, is perfect on training rows; held out, it ranks 1 > 2 > 5 > 6: two of four pairs are right.
    assert trivial_baselines(table, split) == {ONE_FEATURE: 0.5}
    assert trivial_baselines(table, np.full(8, Split.TRAIN, np.uint8)) == {ONE_FEATURE: None}


def test_a_single_feature_of_the_real_table(dataset: Dataset) -> None:
    split = np.arange(len(dataset)) % 3 == 0
    found = trivial_baselines(dataset, np.where(split, Split.TEST, Split.TRAIN).astype(np.uint8))[ONE_FEATURE]
    assert found is not None and 0.68 < found < 0.85  # chest pain of kind 4, or angina by exercise


def test_the_description_of_a_table(tmp_path: Path) -> None:
    facts = describe_data(str(HEART), heart(), tmp_path / "page.html")
    json.dumps(facts, allow_nan=False)
    assert (facts["features"], facts["patients"], facts["natural_sites"]) == (15, 740, "site")
    assert facts["columns"]["site"]["counts"] == {"cleveland": 303, "hungarian": 261, "switzerland": 46, "va": 130}
    assert facts["columns"]["age"]["kind"] == "number" and facts["columns"]["age"]["lowest"] == 28
    page_text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "Features" in page_text and "Size in pixels" not in page_text


def test_a_table_is_not_audited() -> None:
    with pytest.raises(InputError, match="a tabular study cannot be audited"):
        audit_study(AuditOptions(heart(), HEART), lambda *_: None)


def test_the_random_splits_are_different_and_cover_the_same_rows(tmp_path: Path) -> None:
    rows = [line.split(",") for line in (HEART / "processed.va.data").read_text().splitlines()]
    first, second = split_words(rows, 43), split_words(rows, 0)
    assert first != second and first.count("test") == second.count("test") == 45
    assert split_words(rows, 43) == first


def test_jobs_and_page_of_the_benchmark(run: tuple[RunResult, Path]) -> None:
    names = [(job.level.name, job.protocol) for job in jobs((), 20)]
    assert len(names) == 21 + 3 * 40 and len({job.folder for job in jobs((), 20)}) == 141
    with pytest.raises(ValueError, match="no such level: e2"):
        list(jobs(["e2"], 1))
    finding = finding_of(run[0])
    level = next(level for level in LEVELS if level.name == "e1")
    found = {Job(level, "flamby", 0): finding}
    text = page(found, 20)
    assert "140 runs are not done yet" in text and ".685 ± .028" in text
    assert bool(shortfalls(found)) == (finding.mean < 0.80)
