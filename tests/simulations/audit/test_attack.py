# SPDX-License-Identifier: Apache-2.0
"""Small real audits: the real trainer passes, a run without noise is caught, and so is every mechanism that was broken on purpose."""

import numpy as np
import pytest
import torch
from typing_extensions import override

from client.private_trainer import PrivateTrainer
from client.trainer import LocalResult, TrainingData
from common.models.registry import build_model
from common.protocol import Arrays
from simulations.audit.attack import Attacked
from simulations.audit.canaries import SparseRows, draw_included, feature_canaries, mix
from simulations.audit.gradients import Known, Subspace, dense_gradients, head_gradients
from simulations.audit.jobs import canaries_for, plan_of
from simulations.audit.training import initial_arrays, make_trainer, without_noise
from simulations.audit.verdict import Verdict, judge
from tests.simulations.audit.toy import PATIENTS, bound, study, target


class QuietEveryOtherRound(PrivateTrainer):
    """Broken on purpose: noise is drawn and charged for, and added in odd rounds only."""

    @override
    def train(self, data: TrainingData, start: Arrays, round_number: int) -> LocalResult:
        if round_number % 2:
            return super().train(data, start, round_number)
        quiet = make_trainer(self.study, without_noise(plan_of(self.study)), PATIENTS)
        try:
            return quiet.train(data, start, round_number)
        finally:
            quiet.close()


def test_features_private_passes_and_control_is_caught() -> None:
    design, private = bound(study("scattering"))
    _, control = bound(study("scattering"), noise=0.0)
    assert control.epsilon_999 > 1.5 * design.epsilon
    assert private.epsilon_999 <= design.epsilon
    assert judge(design, private, control) is Verdict.PASSED


def test_images_private_passes_and_control_is_caught() -> None:
    toy = study("cnn", **{"federation.rounds": 8, "training.sampling_rate": 0.5})
    design, private = bound(toy, canaries=80)
    _, control = bound(toy, noise=0.0, canaries=80)
    assert judge(design, private, control) is Verdict.PASSED


@pytest.mark.parametrize("noise", [0.1, 0.0])
def test_too_little_noise_fails(noise: float) -> None:
    design, broken = bound(study("scattering"), noise=noise)
    assert judge(design, broken, broken) is Verdict.FAILED


def test_noise_in_every_other_round_fails() -> None:
    design, broken = bound(study("scattering"), trainer=QuietEveryOtherRound)
    assert judge(design, broken, broken) is Verdict.FAILED


def test_no_evidence_is_inconclusive_not_passed() -> None:
    """Four steps that each draw one patient in fifty: nearly no canary was ever drawn, so even the control gives nothing away."""
    design, control = bound(study("scattering", **{"training.sampling_rate": 0.02, "federation.rounds": 4}), noise=0.0)
    assert judge(design, control, control) is Verdict.INCONCLUSIVE


def test_the_attackers_gradients_are_those_of_the_site() -> None:
    """With one patient, everybody drawn and no noise the update is that patient's clipped gradient, for both forms of the gradient."""
    for name in ("cnn", "scattering"):
        toy = study(name, **{"training.sampling_rate": 1.0, "federation.rounds": 1})
        site = target(toy)
        canaries = canaries_for(site, 8)
        trainer = make_trainer(toy, without_noise(plan_of(toy)), 1)
        mixed = mix(site.site, canaries, torch.device("cpu"))
        start = {key: value + np.float32(0.01) for key, value in initial_arrays(trainer.model).items()}
        row = mixed.canary_rows[3:4]
        alone = TrainingData("s", "", mixed.data.dataset, [row], mixed.data.rows)
        delta = trainer.train(alone, start, 1).delta
        clean = make_trainer(toy, without_noise(plan_of(toy)), 1).model
        sent = {key: -value / (0.5 * 0.2) for key, value in delta.items()}
        trainer.close()
        if name == "cnn":
            (expected,) = dense_gradients(Known(trainer, build_model(toy), mixed.data, [row], 0.2), start)
            assert np.concatenate([value.reshape(-1) for value in sent.values()]) == pytest.approx(expected, abs=2e-4)
        else:
            rows = canaries.contents
            assert isinstance(rows, SparseRows)
            one = SparseRows(rows.places[3:4], rows.values[3:4], rows.width)
            found = head_gradients(Known(trainer, clean, mixed.data, [], 0.2), start, row, one)
            assert sent["head.weight"][0] == pytest.approx(found.residuals[0, 0] * rows.dense(np.array([3]))[0], abs=2e-4)
            products, squares = found.products(sent["head.weight"], (one.values**2).sum(1))
            assert products == pytest.approx(squares, abs=2e-4)


def test_real_patients_are_taken_out_of_an_update() -> None:
    site = target(study("scattering")).site
    features = site.rows.inputs(site.flat_rows, None).numpy()
    span = Subspace.of(site)
    assert span.removed_from(np.ones((1, len(features)), np.float32) @ features)[0] == pytest.approx(0.0, abs=1e-4)
    rows = SparseRows(np.array([[1, 2]]), np.array([[3.0, 4.0]], np.float32), features.shape[1])
    assert span.rest_of(rows) == pytest.approx((span.removed_from(rows.dense(np.array([0]))) ** 2).sum(1), rel=1e-4)
    assert 20 < span.rest_of(rows)[0] < 25


def test_canaries_are_orthogonal_and_their_coins_are_fair_and_fresh() -> None:
    canaries = feature_canaries(50, 600, 2, seed=1)
    assert isinstance(canaries.contents, SparseRows)
    dense = canaries.contents.dense(np.arange(50))
    assert dense @ dense.T == pytest.approx(16.0 * np.eye(50), abs=1e-4)
    assert 4700 < draw_included(10_000).sum() < 5300
    assert (draw_included(64) != draw_included(64)).any()


def test_only_canaries_that_are_in_are_trained_on() -> None:
    site = target(study("cnn"))
    canaries = canaries_for(site, 40)
    mixed = mix(site.site, canaries, torch.device("cpu"))
    assert len(mixed.data.patients) == PATIENTS + canaries.included.sum()
    assert [rows.tolist() for rows in mixed.data.patients[PATIENTS:]] == [[48 + number] for number in np.flatnonzero(canaries.included)]
    assert (mixed.data.dataset.images[mixed.canary_rows] == canaries.contents).all()


def test_attacked_runs_travel_as_bytes() -> None:
    run = Attacked(np.array([True, False]), np.array([1.5, -2.0]), np.array([0.1]), np.array([0.2, 0.3]))
    back = Attacked.from_bytes(run.to_bytes())
    assert back.included.tolist() == [True, False]
    assert back.scores.tolist() == [1.5, -2.0]
    assert back.held_out_losses.tolist() == [0.2, 0.3]
