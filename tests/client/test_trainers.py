# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from client.plain_trainer import PlainTrainer, step_random
from client.private_trainer import PrivateTrainer
from client.rows import ImageRows
from client.site import Site
from client.trainer import TrainingData, learning_rate
from common.data.cohort import Split
from common.models.registry import build_model, initial_state
from common.privacy.calibration import plan_privacy
from common.study import Study, Training
from tests.support.studies import PRIVATE, small

CPU = torch.device("cpu")


def data_of(folder: Path, study: Study) -> TrainingData:
    site = Site.open(folder)
    rows = ImageRows(site.cohort.dataset, study.training.augmentation, CPU)
    return TrainingData(site.name, "account", site.cohort.dataset, site.cohort.patients_in(Split.TRAIN), rows)


def by_hand(study: Study, data: TrainingData) -> dict[str, np.ndarray]:
    """One round of SGD written out, one micro-batch a step."""
    model = build_model(study)
    start = {name: value.clone() for name, value in model.trainable_state().items()}
    for step in range(study.training.local_steps):
        random = step_random(study.seed, data.site, 1, step)
        count = round(study.training.sampling_rate * len(data.patients))
        drawn = random.choice(len(data.patients), size=count, replace=False)
        chosen = random.random(count)
        rows = np.array([data.patients[p][int(u * len(data.patients[p]))] for p, u in zip(drawn, chosen, strict=True)])
        images = (torch.from_numpy(data.dataset.images[rows]).float() / 255 - 0.5) / 0.25
        labels = torch.from_numpy(data.dataset.labels[rows]).float()
        model.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(model(images), labels).backward()
        with torch.no_grad():
            for name, value in model.named_parameters():
                pull = study.federation.proximal_mu * (value - start[name])
                value -= study.training.learning_rate * (value.grad + pull)
    return {name: (value.detach() - start[name]).numpy() for name, value in model.named_parameters()}


@pytest.mark.parametrize("federation", [{}, {"federation.strategy": "fedprox", "federation.proximal_mu": 0.7}], ids=["fedavg", "fedprox"])
@pytest.mark.parametrize("microbatch_rows", [64, 5])
def test_plain_training_is_sgd_written_out(make_site: Callable[..., Path], federation: dict, microbatch_rows: int) -> None:
    study = small(**{"training.microbatch_rows": microbatch_rows}).with_changes({"federation": {**small().federation.model_dump()}})
    if federation:
        study = Study.model_validate(
            {**study.model_dump(mode="json"), "federation": {**study.federation.model_dump(), "strategy": "fedprox", "proximal_mu": 0.7}}
        )
    data = data_of(make_site(study), study)
    result = PlainTrainer(study, build_model(study), CPU).train(data, initial_state(study), 1)
    expected = by_hand(study, data)
    for name, value in result.delta.items():
        assert np.allclose(value, expected[name], atol=2e-6), name


def test_training_twice_starts_from_the_same_place(make_site: Callable[..., Path]) -> None:
    study = small(**{"training.optimiser": "adam", "training.learning_rate": 0.01})
    data = data_of(make_site(study), study)
    trainer = PlainTrainer(study, build_model(study), CPU)
    first = trainer.train(data, initial_state(study), 1)
    second = trainer.train(data, initial_state(study), 1)
    assert all(np.array_equal(first.delta[name], second.delta[name]) for name in first.delta)


def test_no_noise_would_be_plain_clipped_training(make_site: Callable[..., Path]) -> None:
    """With a huge clipping norm and almost no noise a private step is a step on the sum over drawn patients."""
    study = small({**PRIVATE, "epsilon": 100.0})
    site = make_site(study)
    data = data_of(site, study)
    model = build_model(study)
    size = sum(value.numel() for value in model.trainable_state().values())
    plan = plan_privacy(study.privacy, study.training.sampling_rate, study.total_steps, size)
    trainer = PrivateTrainer(study, model, CPU, privacy=study.privacy, plan=plan, nominal_patients=60)
    result = trainer.train(data, initial_state(study), 1)
    norm = np.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in result.delta.values()))
    clip, rate, divisor = study.privacy.clipping_norm, study.training.learning_rate, study.training.sampling_rate * 60
    noise = plan.noise_multiplier * clip * np.sqrt(size) / divisor * rate * np.sqrt(2)
    signal = 2 * rate * clip * len(data.patients) / divisor
    assert 0.9 * noise < norm < 1.1 * noise + signal
    assert result.steps == 2


def test_normalised_steps_do_not_depend_on_the_clipping_norm(make_site: Callable[..., Path]) -> None:
    """Every patient drawn, every gradient clipped, no noise: the first step is as long whatever C is, but for the images drawn."""
    lengths = []
    for norm in (1e-2, 1e-5):
        study = small({**PRIVATE, "clipping_norm": norm, "normalise": True, "epsilon": 100.0}).with_changes(
            {"training.sampling_rate": 1.0, "training.local_steps": 1}
        )
        data = data_of(make_site(study), study)
        plan = replace(plan_privacy(study.privacy, 1.0, study.total_steps, 30_000), noise_multiplier=0.0)
        trainer = PrivateTrainer(study, build_model(study), CPU, privacy=study.privacy, plan=plan, nominal_patients=len(data.patients))
        delta = trainer.train(data, initial_state(study), 1).delta
        lengths.append(np.sqrt(sum(float((value.astype(np.float64) ** 2).sum()) for value in delta.values())))
        assert 0 < lengths[-1] <= study.training.learning_rate * (1 + 1e-3)
    assert lengths[1] == pytest.approx(lengths[0], rel=0.35)


def test_learning_rate_schedules() -> None:
    assert learning_rate(Training(learning_rate=0.2), 7, 10) == 0.2
    cosine = Training(learning_rate=0.2, schedule="cosine")
    assert [learning_rate(cosine, step, 4) for step in (0, 2)] == pytest.approx([0.2, 0.1])
    assert learning_rate(cosine, 4, 4) == pytest.approx(0.0)


def test_each_step_of_each_site_has_its_own_generator() -> None:
    draws = {step_random(0, site, number, step).integers(1 << 60) for site in ("a", "b") for number in (1, 2) for step in (0, 1)}
    assert len(draws) == 8
    assert step_random(0, "a", 1, 0).integers(1 << 60) == step_random(0, "a", 1, 0).integers(1 << 60)
