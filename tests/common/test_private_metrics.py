# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from common.privacy.discrete_laplace import noise_variance
from common.private_metrics import Estimate, predicted_standard_error, private_auroc, sampling_error

NO_NOISE = 40.0  # parameter at which a draw is never anything but 0
BINS = 16
EDGES = np.linspace(-3, 4, BINS - 1)


def noise(shape: tuple[int, ...], parameter: float, generator: np.random.Generator, sites: int = 1) -> np.ndarray:
    """Discrete Laplace as the difference of two geometric draws: quick, for statistics only."""
    draws = generator.geometric(-math.expm1(-parameter), size=(2, sites, *shape)).sum(axis=1)
    return np.asarray(draws[0] - draws[1], dtype=np.int64)


def histogram(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """[1, 2, BINS]."""
    cells = np.searchsorted(EDGES, scores, side="right")
    return np.stack([np.bincount(cells[labels == label], minlength=BINS) for label in (0, 1)])[None].astype(np.int64)


def test_without_noise_it_is_the_auroc_of_the_bins_with_ties_as_one_half() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, 300)
    scores = generator.normal(labels * 1.2, 1)
    found = private_auroc(histogram(labels, scores), NO_NOISE, sites=1)
    assert found.value == pytest.approx(roc_auc_score(labels, np.searchsorted(EDGES, scores, side="right")), abs=1e-12)
    assert found.value == pytest.approx(roc_auc_score(labels, scores), abs=0.01)


def test_by_hand() -> None:
    """Negatives 3, 1, 0 and positives 0, 1, 3 in three bins: of 16 pairs 3·1 + 4·3 = 15 are right and one is a tie."""
    found = private_auroc(np.array([[[3, 1, 0], [0, 1, 3]]]), NO_NOISE, sites=1)
    assert found.value == pytest.approx(15.5 / 16)
    assert found.standard_error == pytest.approx(sampling_error(15.5 / 16, 4, 4))


def test_all_right_is_no_proof_of_no_error() -> None:
    found = private_auroc(np.array([[[2, 0], [0, 2]]]), NO_NOISE, sites=1)
    assert found.value == 1.0 and found.standard_error > 0.1


def test_noise_error_by_hand() -> None:
    """20 and 0 negatives, 5 and 5 positives in two bins: below = (.5, 1), above = (.75, .25), AUROC .75."""
    variance = 3 * noise_variance(0.5)
    by_noise = variance * ((0.25**2 + 0.25**2) / 10**2 + (0.0**2 + 0.5**2) / 20**2)
    found = private_auroc(np.array([[[20, 0], [5, 5]]]), 0.5, sites=3)
    assert found.value == pytest.approx(0.75)
    assert found.standard_error == pytest.approx(math.hypot(sampling_error(0.75, 10, 20), math.sqrt(by_noise)))


def test_hanley_and_mcneil() -> None:
    """Their formula, worked by hand for A = .8, 50 positives, 100 negatives: Q1 = 2/3, Q2 = 1.28/1.8."""
    variance = (0.8 * 0.2 + 49 * (2 / 3 - 0.64) + 99 * (1.28 / 1.8 - 0.64)) / 5000
    assert sampling_error(0.8, 50, 100) == pytest.approx(math.sqrt(variance))
    assert sampling_error(1.01, 50, 100) == 0.0


@pytest.mark.parametrize(("shift", "sites", "epsilon"), [(1.2, 1, 1.0), (2.2, 4, 1.0), (1.2, 4, 0.5)])
def test_the_interval_covers_and_the_estimate_is_unbiased(shift: float, sites: int, epsilon: float) -> None:
    """New patients and new noise each time: 95 % intervals hold the truth about as often, and never far less."""
    generator = np.random.default_rng(7)
    found, trials = [], 400
    for _ in range(trials):
        labels = (generator.random(600) < 0.45).astype(np.int64)
        counts = histogram(labels, generator.normal(labels * shift, 1))
        found.append(private_auroc(counts + noise(counts.shape, epsilon, generator, sites), epsilon, sites))
    truth = _binned_truth(shift)
    values, errors = np.array([each.value for each in found]), np.array([each.standard_error for each in found])
    covered = (np.abs(values - truth) <= 1.96 * errors).mean()
    assert covered >= 0.90
    assert values.std() == pytest.approx(errors.mean(), rel=0.25)
    assert abs(values.mean() - truth) < 5 * values.std() / math.sqrt(trials)


def test_cutting_negative_counts_at_zero_would_be_seen() -> None:
    """The reason why they stay: with small counts in many empty bins the cut estimate is far too low, the uncut one is not."""
    generator = np.random.default_rng(3)
    labels = np.repeat([0, 1], 250)
    counts = histogram(labels, generator.normal(labels * 4 - 1.0, 0.4))
    exact = private_auroc(counts, NO_NOISE, 1).value
    noisy = [counts + noise(counts.shape, 0.5, generator, sites=8) for _ in range(200)]
    kept = np.mean([private_auroc(each, 0.5, 8).value for each in noisy])
    cut = np.mean([private_auroc(np.maximum(each, 0), 0.5, 8).value for each in noisy])
    assert abs(kept - exact) < 0.02
    assert exact - cut > 0.05


def _binned_truth(shift: float) -> float:
    """AUROC of two normals in the bins."""
    edges = np.concatenate([[-np.inf], EDGES, [np.inf]])
    negative, positive = (np.diff(stats.norm.cdf(edges - mean)) for mean in (0.0, shift))
    return float(positive @ (np.cumsum(negative) - negative / 2))


@pytest.mark.parametrize("patients", [(0, 0), (300, 0), (0, 300), (8, 8)])
def test_too_few_patients_are_not_measurable_and_never_an_error(patients: tuple[int, int]) -> None:
    counts = np.zeros((1, 2, BINS), np.int64)
    counts[0, 0, 2], counts[0, 1, 12] = patients
    generator = np.random.default_rng(2)
    for _ in range(200):
        assert not private_auroc(counts + noise(counts.shape, 1.0, generator), 1.0, 1).is_measurable


def test_several_questions_are_averaged() -> None:
    one = np.array([[3, 1, 0], [0, 1, 3]])
    both = private_auroc(np.stack([one, one[:, ::-1]]), 1.0, 1)
    single = private_auroc(one[None], 1.0, 1)
    assert both.value == pytest.approx(0.5)
    assert both.standard_error < single.standard_error
    assert private_auroc(np.stack([one, np.zeros_like(one)]), 1.0, 1) == Estimate(None, None)


def test_the_prediction_is_near_what_is_found_and_not_below_it() -> None:
    generator = np.random.default_rng(5)
    for patients, sites, epsilon in ((550, 4, 1.0), (2000, 10, 1.0), (300, 2, 2.0)):
        labels = (np.arange(patients) % 2).astype(np.int64)
        counts = histogram(labels, generator.normal(labels * 1.2, 1))
        found = private_auroc(counts + noise(counts.shape, epsilon, generator, sites), epsilon, sites).standard_error
        predicted = predicted_standard_error(patients, sites, BINS, epsilon)
        assert 0.95 * found < predicted < 2 * found


def test_the_prediction_falls_with_patients_and_epsilon() -> None:
    base = predicted_standard_error(500, 4, 16, 1.0)
    assert predicted_standard_error(1000, 4, 16, 1.0) < base < predicted_standard_error(500, 4, 16, 0.5)
    assert predicted_standard_error(500, 4, 8, 1.0) < base < predicted_standard_error(500, 8, 16, 1.0)
    assert predicted_standard_error(500, 4, 16, 1.0 / 5, questions=5) > base
