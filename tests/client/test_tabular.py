# SPDX-License-Identifier: Apache-2.0
"""A hospital with a table: what IT reads before it approves, a private round on real patients, and what leaves."""

import shutil

import numpy as np
import pytest
import torch

from client.approving import propose
from client.evaluator import REFERENCE_IMAGES, BinPlacer
from client.private_trainer import PrivateTrainer
from client.scores import SiteScores
from client.site import Site, evaluation_path, open_ledger
from client.study_words import in_words
from client.workbench import StudyBench
from common.data.cohort import Split
from common.data.table_features import features_of, reference_features
from common.models.registry import build_model, initial_state
from common.protocol import Instruction
from common.study import Study
from common.study_file import load_study
from simulations.options import SHIPPED_STUDIES
from tests.client.offered import NOW, Hospital
from tests.support.tables import HEART

EVALUATION = {"private": {"epsilon": 1.0}}


def heart_study() -> Study:
    """The shipped study at two rounds; this hospital's patients are measured too."""
    shipped = load_study(SHIPPED_STUDIES / "heart-disease-strict.yaml")
    return shipped.with_changes({"federation.rounds": 2, "evaluation.private": EVALUATION["private"]})


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Hospital:
    made = Hospital.make(tmp_path_factory.mktemp("tabular") / "home")
    shutil.copy(HEART / "processed.cleveland.data", made.home.folder / "cleveland.data")
    made.set(cohorts={"heart": {"data": "cleveland.data", "nominal_patients": 200}})
    made.offer(heart_study())
    return made


@pytest.fixture(scope="module")
def site(hospital: Hospital) -> Site:
    hospital.approve(heart_study())
    return Site.open(hospital.home.study(heart_study().id))


def test_it_reads_in_words_which_columns_are_used(hospital: Hospital) -> None:
    words = in_words(propose(hospital.home, heart_study().id, None, 1, NOW))
    assert "It trains logistic (binary: healthy, disease) on cohort heart" in words
    assert "Of the table it reads num (what it learns to tell) and age, chol, cp, exang" in words
    assert "thal," not in words and "16 numbers" in words


def test_a_private_round_on_a_table(site: Site) -> None:
    study = heart_study()
    bench = StudyBench(study, torch.device("cpu"))
    start = initial_state(study)
    instruction = Instruction("run-1", study.canonical_json, 1, train=True, evaluate=False, model=start)
    update = bench.train(site, instruction)
    assert {name: value.shape for name, value in update.delta.items()} == {"head.weight": (1, 15), "head.bias": (1,)}
    assert all(np.isfinite(value).all() and value.any() for value in update.delta.values())
    charges = len(open_ledger(site.folder).fold().charge_fold.charges)
    again = bench.train(site, instruction)
    assert all(np.array_equal(again.delta[name], value) for name, value in update.delta.items()), "what left is sent again as it was"
    assert len(open_ledger(site.folder).fold().charge_fold.charges) == charges >= 1


def test_the_measurement_of_a_table_leaves_as_a_histogram(site: Site) -> None:
    study = heart_study()
    bench = StudyBench(study, torch.device("cpu"))
    model = {name: value + np.float32(0.1) for name, value in initial_state(study).items()}
    instruction = Instruction("run-1", study.canonical_json, 2, train=False, evaluate=True, model=model)
    counts = bench.measure(site, instruction, bench.evaluate(site, instruction))
    assert counts is not None and counts.dtype == np.int64 and counts.shape == (1, 2, 16)
    held_out = SiteScores.read(evaluation_path(site.folder, 2))
    assert len(held_out.rows) == site.cohort.patient_count(Split.TEST) > 50


def test_scores_are_those_of_the_tables_own_features(site: Site) -> None:
    """The whole way (file, store, site, model) against the logistic function written out."""
    study, dataset = heart_study(), site.cohort.dataset
    bench = StudyBench(study, torch.device("cpu"))
    random = np.random.default_rng(0)
    model = {name: random.normal(size=value.shape).astype(np.float32) for name, value in initial_state(study).items()}
    scores = bench.evaluate(site, Instruction("run-1", study.canonical_json, 2, train=False, evaluate=True, model=model))
    raw = {name: dataset.columns[name][scores.rows] for name in study.data.columns}
    logits = features_of(raw, study.data) @ model["head.weight"][0] + model["head.bias"][0]
    assert scores.scores == pytest.approx(1 / (1 + np.exp(-logits)), abs=1e-6)


def test_bins_are_laid_around_made_up_rows_not_around_patients() -> None:
    study = heart_study()
    model = build_model(study)
    torch.nn.init.normal_(model.get_submodule("head").weight)
    rows = torch.from_numpy(reference_features(study.data, REFERENCE_IMAGES))
    with torch.no_grad():
        logits = model(rows).double().numpy()
    edges = BinPlacer(study, torch.device("cpu")).edges(model, 16)
    assert edges.shape == (1, 15)
    assert edges[0, 7] == pytest.approx(logits.mean(), abs=1e-3)


def test_a_site_that_does_not_allow_the_model_refuses(hospital: Hospital) -> None:
    hospital.set(allow={"models": ["cnn", "scattering"]})
    try:
        from client.policy import problems
        from client.site_config import SiteConfig

        found = problems(SiteConfig.read(hospital.home.config), heart_study(), "heart")
        assert [text for _, text in found] == ["allow.models does not have logistic"]
    finally:
        hospital.set(allow={})


def test_the_trainer_takes_micro_batches_of_features(site: Site) -> None:
    """Every patient is in the step (q = 1), in order, with their own features and label."""
    study = heart_study()
    bench = StudyBench(study, torch.device("cpu"))
    data, trainer = bench._training_data(site), bench._trainer(200)
    assert isinstance(trainer, PrivateTrainer)
    batches = list(trainer._microbatches(data, np.arange(len(data.patients))))
    weights = torch.cat([batch.weight for batch in batches])
    inputs = torch.cat([batch.inputs for batch in batches])[weights > 0]
    rows = data.flat_rows
    assert site.cohort.dataset.features is not None
    assert torch.equal(inputs, torch.from_numpy(site.cohort.dataset.features[rows]))
    targets = torch.cat([batch.targets for batch in batches])[weights > 0]
    assert targets.tolist() == site.cohort.dataset.labels[rows].tolist()
