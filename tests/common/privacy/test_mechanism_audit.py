# SPDX-License-Identifier: Apache-2.0
"""The mechanism as a black box: thousands of real private rounds of one step, judged by what leaves, for every engine.

The canary's gradient has a norm far above C along one direction. A test fails by chance less than once in 10^9.
"""

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.stats import binomtest, chi2, chi2_contingency, kstest
from torch import Tensor

from common.privacy.grid import relative_sensitivity
from tests.support.mechanism import ENGINES, NORM, Mechanism

CERTAIN = 1e-9
SIZE, NOISE, RATE, NOMINAL = 12, 1.5, 0.3, 12
PATIENTS = 9  # the true size, which is not the nominal one
STEPS = 1200
SD = NOISE * NORM


def along(axis: int, length: float, images: int = 1, size: int = SIZE) -> np.ndarray:
    """Gradients of so many images, all along one axis."""
    pulls = np.zeros((images, size), np.float32)
    pulls[:, axis] = length
    return pulls


def crowd(canary: bool = True) -> list[np.ndarray]:
    """Patient 0 pulls along axis 0, without measure if a canary; the others a little along axis 1. Nobody touches the other axes."""
    return [along(0, 1e4 if canary else 0.0, images=5), *(along(1, 0.1, images=1 + number % 3) for number in range(PATIENTS - 1))]


def assert_variance_one(noise: np.ndarray) -> None:
    low, high = chi2.ppf([CERTAIN / 2, 1 - CERTAIN / 2], noise.size) / noise.size
    assert low < np.mean(np.square(noise)) < high


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def sums(engine: str) -> np.ndarray:
    """Noisy sums [STEPS, SIZE] of rounds with a canary among the patients, two views of each."""
    return Mechanism(engine, crowd(), noise=NOISE, rate=RATE, nominal=NOMINAL, views=2).rounds(STEPS)


@pytest.fixture(scope="module")
def masks(engine: str) -> np.ndarray:
    """Who was in each round, bool [STEPS, PATIENTS]: without noise, and with an axis for each patient, the sum shows it."""
    pulls = [along(patient, 1e3, images=1 + 3 * patient) for patient in range(PATIENTS)]
    found = Mechanism(engine, pulls, noise=0.0, rate=RATE, views=2).rounds(STEPS)[:, :PATIENTS] / NORM
    assert np.abs(found - found.round()).max() < 1e-4 and set(found.round().ravel()) == {0.0, 1.0}
    return found > 0.5


def test_the_noise_has_the_promised_variance_and_shape(sums: np.ndarray) -> None:
    noise = sums[:, 2:] / SD  # axes on which nobody pulls
    assert_variance_one(noise)
    assert kstest(noise.ravel(), "norm").pvalue > CERTAIN
    for axis in range(SIZE - 2):
        assert_variance_one(noise[:, axis])


def test_numbers_of_a_round_and_rounds_are_independent(sums: np.ndarray) -> None:
    noise = sums[:, 2:] / SD
    limit = 6.5 / math.sqrt(STEPS)
    assert np.abs(np.corrcoef(noise.T)[np.triu_indices(SIZE - 2, 1)]).max() < limit
    for lag in (1, 2, 7):
        assert abs(np.corrcoef(noise[:-lag].ravel(), noise[lag:].ravel())[0, 1]) < limit
    assert len(np.unique(noise, axis=0)) == STEPS, "noise was used again"


def test_the_canary_moves_the_sum_by_the_norm_or_not_at_all(sums: np.ndarray) -> None:
    """Along its axis the sum is a mixture: N(0, sd²) with weight 1 - q and N(C, sd²) with weight q, whatever the number of images."""
    from scipy.stats import norm

    def mixture(value: np.ndarray) -> np.ndarray:
        return (1 - RATE) * norm.cdf(value / SD) + RATE * norm.cdf((value - NORM) / SD)

    assert kstest(sums[:, 0], mixture).pvalue > CERTAIN
    sd = math.sqrt(SD**2 + RATE * (1 - RATE) * NORM**2)
    assert abs(sums[:, 0].mean() - RATE * NORM) < 6.5 * sd / math.sqrt(STEPS)


def test_the_noise_does_not_depend_on_who_is_in(engine: str) -> None:
    """Nobody, one in ten thousand, or everybody: the same noise. Rounds without patients are rounds of noise."""
    for rate in (1e-6, 1.0):
        noise = Mechanism(engine, crowd(canary=False), noise=NOISE, rate=rate).rounds(300)[:, 2:] / SD
        assert_variance_one(noise)
        assert kstest(noise.ravel(), "norm").pvalue > CERTAIN


def test_patients_are_included_with_the_public_rate(masks: np.ndarray) -> None:
    assert all(binomtest(int(count), STEPS, RATE).pvalue > CERTAIN for count in masks.sum(axis=0))
    assert binomtest(int((~masks.any(axis=1)).sum()), STEPS, (1 - RATE) ** PATIENTS).pvalue > CERTAIN


def test_patients_are_drawn_independently(masks: np.ndarray) -> None:
    """Pairs, batch sizes and neighbouring rounds: a shuffle, a fixed batch size or a repeated mask shows in one of them."""
    for first, second in combinations(range(PATIENTS), 2):
        table = np.array([[np.sum((masks[:, first] == a) & (masks[:, second] == b)) for b in (0, 1)] for a in (0, 1)])
        assert chi2_contingency(table, correction=False).pvalue > CERTAIN
    sizes = np.bincount(masks.sum(axis=1), minlength=PATIENTS + 1)
    likely = np.array([math.comb(PATIENTS, k) * RATE**k * (1 - RATE) ** (PATIENTS - k) for k in range(PATIENTS + 1)])
    chance = np.append(likely[:6], likely[6:].sum()) * STEPS
    assert chi2.sf(np.sum((np.append(sizes[:6], sizes[6:].sum()) - chance) ** 2 / chance), 6) > CERTAIN
    centred = masks - RATE
    for patient in range(PATIENTS):
        assert abs(np.mean(centred[1:, patient] * centred[:-1, patient])) < 6.5 * RATE * (1 - RATE) / math.sqrt(STEPS)


@pytest.mark.parametrize(("views", "images"), [(1, 1), (1, 40), (3, 2), (3, 40), (40, 40)])
def test_one_patient_moves_the_sum_by_at_most_the_norm(engine: str, views: int, images: int) -> None:
    """However many images, and whatever their gradients: added to five others, who are the same in both sums."""
    random = np.random.default_rng(images * 100 + views)
    for length in (1e-3, 0.3, 1.0, 30.0, 1e6):
        others = [random.normal(size=(1, SIZE)).astype(np.float32) for _ in range(5)]
        canary = (random.normal(size=(images, SIZE)) * length + length).astype(np.float32)
        moved = difference(engine, others, canary, views=views, microbatch_rows=17)
        assert moved <= NORM * (relative_sensitivity(SIZE) + 1e-6)
        if length > 10:
            assert moved == pytest.approx(NORM, rel=1e-4)


def test_one_patient_moves_a_million_numbers_by_at_most_the_norm(engine: str) -> None:
    size = 1_000_000
    random = np.random.default_rng(0)
    others = [random.normal(size=(1, size)).astype(np.float32) for _ in range(2)]
    canary = np.abs(random.standard_cauchy(size=(2, size))).astype(np.float32)
    moved = difference(engine, others, canary, views=2)
    assert 0.999 * NORM < moved <= NORM * (relative_sensitivity(size) + 1e-6)


def difference(engine: str, others: list[np.ndarray], canary: np.ndarray, **settings: int) -> float:
    """How far `canary` moves the sum over all patients, without noise."""
    alone = Mechanism(engine, others, noise=0.0, rate=1.0, **settings).rounds(1)[0]
    joined = Mechanism(engine, [others[0], canary, *others[1:]], noise=0.0, rate=1.0, **settings).rounds(1)[0]
    return float(np.linalg.norm(joined - alone))


class FailsLater:
    """Images that cannot be read after the first micro-batch."""

    def __init__(self, features: np.ndarray) -> None:
        self._features = features
        self._calls = 0

    def inputs(self, rows: np.ndarray, uniforms: Tensor | None) -> Tensor:
        self._calls += 1
        if self._calls > 1:
            raise OSError("disk gone")
        return torch.from_numpy(self._features[rows])


def test_a_round_that_broke_off_leaves_nothing_to_the_next(engine: str) -> None:
    """Patients of a broken step must not count twice under the noise of the next one."""
    pulls = [along(0, 1e3) for _ in range(6)]
    mechanism = Mechanism(engine, pulls, noise=0.0, rate=1.0, microbatch_rows=2)
    features = np.concatenate([2 * rows for rows in pulls])
    for _ in range(3):
        with pytest.raises(OSError, match="disk gone"):
            mechanism.released(FailsLater(features))
        assert mechanism.rounds(1)[0, 0] == pytest.approx(6 * NORM, rel=1e-4)


def test_the_divisor_is_public(engine: str) -> None:
    """The canary's share of an update is C / (q N0): the true number of patients, in the cohort or in the step, does not enter."""
    for others in (0, 3, 40):
        pulls = [along(0, 1e4), *(along(1, 0.1) for _ in range(others))]
        released = Mechanism(engine, pulls, noise=0.0, rate=1.0, nominal=NOMINAL).released()
        assert released[0] == pytest.approx(NORM / NOMINAL, rel=1e-4)
        assert released[1] == pytest.approx(others * 0.1 / NOMINAL, rel=1e-4, abs=1e-9)


def test_two_runs_of_one_study_differ_in_masks_and_noise(engine: str) -> None:
    pulls = [along(patient, 1e3, size=60) for patient in range(60)]
    runs = []
    for _ in range(2):
        torch.manual_seed(1234)  # seeds have no say
        np.random.seed(1234)
        mask = Mechanism(engine, pulls, noise=0.0, rate=0.5).rounds(3)
        noise = Mechanism(engine, pulls, noise=NOISE, rate=1e-6).rounds(2)
        assert not np.isclose(noise[0], noise[1]).any(), "the same round again has other noise"
        runs.append((mask, noise))
    assert not np.allclose(runs[0][0], runs[1][0])
    assert not np.isclose(runs[0][1], runs[1][1]).any()


def test_the_attack_of_the_control_succeeds_without_noise(engine: str) -> None:
    """An audit that cannot find a missing mechanism proves nothing: without noise the canary is seen every time."""
    with_canary = Mechanism(engine, crowd(), noise=0.0, rate=1.0).rounds(20)
    without = Mechanism(engine, crowd(canary=False), noise=0.0, rate=1.0).rounds(20)
    assert (with_canary[:, 0] > NORM / 2).all() and not without[:, 0].any()
