# SPDX-License-Identifier: Apache-2.0
"""The mechanism as a black box: thousands of real private steps on a toy model, judged by what comes out of them.

The canary has a gradient of norm far above C along one direction; learning rate 0, so every step is the same mechanism. A test fails
by chance once in 10^9.
"""

import math

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chi2, kstest
from torch import Tensor, nn

from common.privacy.generator import SystemGenerator
from common.privacy.opacus_engine import OpacusStepper
from common.privacy.sampling import poisson_sample
from common.privacy.step import MicroBatch

CERTAIN = 1e-9
SIZE, NORM, NOISE, RATE, NOMINAL = 12, 0.7, 1.5, 0.3, 12
DIVISOR = RATE * NOMINAL
PATIENTS = 9  # the true size, which is not the nominal one
STEPS = 1500


class Mechanism:
    """Single steps at a fixed model; `released` is what an observer sees of one."""

    def __init__(self, noise: float = NOISE) -> None:
        torch.manual_seed(0)  # has no say in noise or sampling
        self.generator = SystemGenerator()
        self.model = nn.Sequential(nn.Linear(SIZE, 1, bias=False), nn.Flatten(0))
        self._seen: list[Tensor] = []
        self._stepper = OpacusStepper(
            self.model,
            torch.optim.SGD(self.model.parameters(), lr=0.0),
            lambda outputs, targets: outputs * targets,
            clipping_norm=NORM,
            noise_multiplier=noise,
            divisor=DIVISOR,
            generator=self.generator,
            after_noise=lambda: self._seen.append(self.model[0].weight.grad[0].double().clone()),
        )

    def released(self, patients: np.ndarray, canary: int | None = None) -> np.ndarray:
        """The gradient of a step with these patients, [SIZE]. Patient `canary` pulls along axis 0, the others along axis 1."""
        batches = [self._batch(patients, canary)] if len(patients) else []
        self._stepper.private_step(batches)
        return self._seen.pop().numpy()

    @staticmethod
    def _batch(patients: np.ndarray, canary: int | None) -> MicroBatch:
        inputs = torch.zeros(len(patients), SIZE)
        for row, patient in enumerate(patients):
            inputs[row, 0 if patient == canary else 1] = 1e4 if patient == canary else 0.2
        return MicroBatch(inputs, torch.ones(len(patients)), torch.arange(len(patients)), torch.ones(len(patients)), len(patients))


@pytest.fixture(scope="module")
def runs() -> tuple[np.ndarray, list[np.ndarray]]:
    """Released gradients [STEPS, SIZE] of sampled steps with canary 0, and who was drawn."""
    mechanism = Mechanism()
    drawn = [poisson_sample(PATIENTS, RATE, mechanism.generator) for _ in range(STEPS)]
    return np.array([mechanism.released(patients, canary=0) for patients in drawn]), drawn


def test_the_noise_has_the_promised_variance_and_shape(runs: tuple[np.ndarray, list[np.ndarray]]) -> None:
    released, _ = runs
    noise = released[:, 2:].ravel() * DIVISOR / (NOISE * NORM)  # axes on which no patient pulls
    low, high = chi2.ppf([CERTAIN, 1 - CERTAIN], len(noise)) / len(noise)
    assert low < np.mean(noise**2) < high
    assert kstest(noise, "norm").pvalue > CERTAIN
    assert np.abs(np.corrcoef(released[:, 2:].T)[np.triu_indices(SIZE - 2, 1)]).max() < 6.5 / math.sqrt(STEPS)
    assert abs(np.corrcoef(noise[:-SIZE], noise[SIZE:])[0, 1]) < 6.5 / math.sqrt(len(noise))


def test_the_canary_moves_the_mean_by_exactly_the_norm_over_the_public_divisor(runs: tuple[np.ndarray, list[np.ndarray]]) -> None:
    released, drawn = runs
    inside = np.array([0 in patients for patients in drawn])
    sd = NOISE * NORM / DIVISOR
    for chosen, mean in ((inside, NORM / DIVISOR), (~inside, 0.0)):
        assert abs(released[chosen, 0].mean() - mean) < 6.5 * sd / math.sqrt(chosen.sum())
        assert kstest((released[chosen, 0] - mean) / sd, "norm").pvalue > CERTAIN


def test_without_noise_the_move_is_the_norm_to_the_grid() -> None:
    moved = Mechanism(noise=0.0).released(np.array([0, 1, 2]), canary=0)
    assert moved[0] == pytest.approx(NORM / DIVISOR, rel=2.0**-16)
    assert moved[1] == pytest.approx(2 * 0.2 / DIVISOR, rel=1e-5)  # the true size of the step does not enter


def test_patients_are_included_with_the_public_rate(runs: tuple[np.ndarray, list[np.ndarray]]) -> None:
    _, drawn = runs
    counts = np.bincount(np.concatenate(drawn), minlength=PATIENTS)
    assert all(binomtest(int(count), STEPS, RATE).pvalue > CERTAIN for count in counts)
    together = sum({3, 4} <= set(patients.tolist()) for patients in drawn)
    assert binomtest(together, STEPS, RATE**2).pvalue > CERTAIN
    assert len({len(patients) for patients in drawn}) > 4  # no fixed batch size


def test_steps_without_patients_are_steps_of_noise(runs: tuple[np.ndarray, list[np.ndarray]]) -> None:
    released, drawn = runs
    empty = np.array([len(patients) == 0 for patients in drawn])
    assert binomtest(int(empty.sum()), STEPS, (1 - RATE) ** PATIENTS).pvalue > CERTAIN
    noise = released[empty] * DIVISOR / (NOISE * NORM)
    low, high = chi2.ppf([CERTAIN, 1 - CERTAIN], noise.size) / noise.size
    assert low < np.mean(noise**2) < high


def test_two_runs_of_one_study_differ_in_masks_and_noise() -> None:
    results = []
    for _ in range(2):
        mechanism = Mechanism()
        masks = [tuple(poisson_sample(500, RATE, mechanism.generator)) for _ in range(5)]
        results.append((masks, mechanism.released(np.array([], dtype=np.int64))))
    assert results[0][0] != results[1][0]
    assert not np.isclose(results[0][1], results[1][1]).any()


def test_seeding_torch_and_numpy_changes_nothing() -> None:
    noise = []
    for _ in range(2):
        mechanism = Mechanism()
        torch.manual_seed(1234)
        np.random.seed(1234)
        noise.append(mechanism.released(np.array([0]), canary=0))
    assert not np.isclose(noise[0], noise[1]).any()


def test_the_attack_of_the_control_succeeds_without_noise() -> None:
    """An audit that cannot find a missing mechanism proves nothing: without noise the canary is seen every time."""
    mechanism = Mechanism(noise=0.0)
    guesses = [mechanism.released(np.array([0, 1]), canary=0)[0] > NORM / DIVISOR / 2 for _ in range(20)]
    assert all(guesses)
    assert mechanism.released(np.array([1]), canary=0)[0] == 0.0
