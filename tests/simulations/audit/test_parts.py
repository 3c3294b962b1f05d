# SPDX-License-Identifier: Apache-2.0
"""Estimates and pictures against what is known by hand."""

from dataclasses import replace

import numpy as np
import pytest

from simulations.audit.inversion import attacked_study, one_patient_update, reconstruct, ssim
from simulations.audit.jobs import plan_of
from simulations.audit.membership import found_at, membership
from simulations.audit.scores import MOST_A_ROUND, Counts, log_ratios, matched, ridge
from tests.simulations.audit.toy import study


def test_ridge_finds_exact_counts_without_noise() -> None:
    random = np.random.default_rng(0)
    gradients = random.normal(size=(30, 400)).astype(np.float32)
    gradients[1] = 0.9 * gradients[0] + 0.1 * gradients[1]  # nearly parallel: a plain inner product would confuse the two
    counts = random.integers(0, 3, 30)
    found = ridge(gradients, counts.astype(np.float32) @ gradients, 0.5, 1.0)
    assert found.estimate == pytest.approx(counts, abs=0.02)
    assert found.error.max() < 0.05


def test_ridge_knows_its_error() -> None:
    random = np.random.default_rng(1)
    gradients = (random.normal(size=(60, 2000)) / np.sqrt(2000)).astype(np.float32)
    scaled = []
    for _ in range(30):
        counts = random.binomial(2, 0.3, 60)
        update = counts @ gradients + random.normal(size=2000) * 0.5
        found = ridge(gradients, update.astype(np.float32), 0.6, 0.42)
        scaled.append((found.estimate - counts) / found.error)
    assert np.std(scaled) == pytest.approx(1.0, abs=0.2)


def test_matched_counts_and_error() -> None:
    random = np.random.default_rng(2)
    truth = (random.random(5000) < 0.1).astype(np.float64)
    found = matched(np.float32(0.25 * (truth + random.normal(size=5000) * 2)), np.full(5000, 0.25, np.float32))
    assert found.estimate.mean() == pytest.approx(0.1, abs=0.15)
    assert np.median(found.error) == pytest.approx(2.0, rel=0.05)


def test_log_ratio_is_the_likelihood_ratio() -> None:
    ratio = log_ratios(Counts(np.array([0.0, 1.0, 0.3]), np.array([0.5, 0.5, 0.5])), 0.2, 1)

    def density(x: float, mean: float) -> float:
        return float(np.exp(-((x - mean) ** 2) / (2 * 0.25)))

    expected = [np.log((0.8 * density(x, 0) + 0.2 * density(x, 1)) / density(x, 0)) for x in (0.0, 1.0, 0.3)]
    assert ratio == pytest.approx(expected, abs=1e-9)
    assert log_ratios(Counts(np.array([9.0]), np.array([0.2])), 0.2, 5)[0] == MOST_A_ROUND


def test_membership_by_hand() -> None:
    members, others = np.array([0.1, 0.2, 0.9]), np.array([0.5, 0.6])
    assert membership(members, others).auroc == pytest.approx(4 / 6)
    assert found_at(members, others, 0.5) == pytest.approx(2 / 3)
    assert found_at(members, others, 0.01) is None
    assert found_at(np.array([0.5, 2.0]), np.arange(1.0, 201.0), 0.01) == 1.0


def test_ssim_of_equal_and_of_unlike_images() -> None:
    image = np.random.default_rng(0).random((1, 16, 16))
    assert ssim(image, image) == pytest.approx(1.0)
    assert ssim(image, 1 - image) < 0


def test_a_picture_comes_out_of_a_plain_update_and_not_out_of_a_private_one() -> None:
    toy = study("cnn", **{"federation.rounds": 8})
    small, plan = attacked_study(toy), plan_of(toy)
    grid = np.linspace(0, 3, 16)
    original = np.rint(127 + 100 * np.sin(grid[:, None]) * np.cos(grid[None, :])).astype(np.uint8)[None]
    quiet = reconstruct(
        small, one_patient_update(small, replace(plan, noise_multiplier=0.0), original, 1), original, 1, lambda done, total: None
    )
    noised = reconstruct(small, one_patient_update(small, plan, original, 1), original, 1, lambda done, total: None)
    assert quiet.psnr > 20
    assert quiet.ssim > 0.7
    assert noised.psnr < 14
    assert noised.ssim < 0.3
