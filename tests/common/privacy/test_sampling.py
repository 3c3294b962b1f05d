# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from common.errors import InputError
from common.privacy.generator import SystemGenerator
from common.privacy.sampling import _below, draw_views, poisson_sample

CERTAIN = 1e-9  # a test fails by chance once in 10^9


class FixedWords(SystemGenerator):
    """Hands out given words, to reach the edges."""

    def __init__(self, words: list[int]) -> None:
        super().__init__()
        self.given = words

    def words(self, count: int):
        taken, self.given = self.given[:count], self.given[count:]
        return np.array(taken, dtype=np.uint64)


def test_each_patient_is_drawn_with_the_rate() -> None:
    generator = SystemGenerator()
    drawn = np.zeros(200, dtype=np.int64)
    for _ in range(2000):
        drawn[poisson_sample(200, 0.15, generator)] += 1
    assert binomtest(int(drawn.sum()), 400_000, 0.15).pvalue > CERTAIN
    expected_sd = np.sqrt(2000 * 0.15 * 0.85)
    assert np.abs(drawn - 300).max() < 6.5 * expected_sd


def test_pairs_are_independent_and_sizes_vary() -> None:
    generator = SystemGenerator()
    sizes = [len(poisson_sample(50, 0.5, generator)) for _ in range(4000)]
    assert np.var(sizes) == pytest.approx(12.5, rel=0.15)  # a shuffle or a fixed batch has none
    both = sum({0, 1} <= set(poisson_sample(2, 0.5, generator).tolist()) for _ in range(4000))
    assert binomtest(both, 4000, 0.25).pvalue > CERTAIN


def test_the_threshold_is_exact() -> None:
    quarter = 2**62
    drawn = poisson_sample(3, 0.25, FixedWords([quarter - 1, quarter, 0]))
    assert drawn.tolist() == [0, 2]


def test_the_smallest_and_the_largest_rates() -> None:
    assert poisson_sample(5, 1.0, FixedWords([])).tolist() == [0, 1, 2, 3, 4]
    assert poisson_sample(3, 2.0**-64, FixedWords([0, 1, 2])).tolist() == [0]
    assert poisson_sample(0, 0.5, SystemGenerator()).tolist() == []
    almost_one = np.nextafter(1.0, 0.0)
    assert poisson_sample(2, almost_one, FixedWords([2**64 - 2**11 - 1, 2**64 - 2**11])).tolist() == [0]


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, float("nan")])
def test_a_rate_that_is_no_probability_is_refused(rate: float) -> None:
    with pytest.raises(InputError, match="sampling_rate"):
        poisson_sample(3, rate, SystemGenerator())


def test_views_are_different_images_first() -> None:
    patients = [np.arange(10, 13), np.arange(20, 21), np.arange(30, 60)]
    generator = SystemGenerator()
    for _ in range(50):
        few, one, many = draw_views(patients, 7, generator)
        assert set(few[:3]) == set(few[3:6]) == {10, 11, 12}
        assert set(one) == {20}
        assert len(set(many)) == 7 and set(many) <= set(range(30, 60))


def test_views_are_uniform_in_every_place() -> None:
    patients = [np.arange(5)] * 20_000
    drawn = draw_views(patients, 6, SystemGenerator())
    for place in range(6):
        assert chisquare(np.bincount(drawn[:, place], minlength=5)).pvalue > CERTAIN
    pairs = np.bincount(drawn[:, 0] * 5 + drawn[:, 1], minlength=25).reshape(5, 5)
    assert pairs.diagonal().sum() == 0
    assert chisquare(pairs[~np.eye(5, dtype=bool)]).pvalue > CERTAIN


def test_the_high_half_of_a_product() -> None:
    words = SystemGenerator().words(200)
    bounds = np.arange(1, 201, dtype=np.int64) * 7919
    expected = [int(word) * int(bound) >> 64 for word, bound in zip(words, bounds, strict=True)]
    assert _below(bounds, words).tolist() == expected
    assert _below(np.array([2**32 - 1]), np.array([2**64 - 1], dtype=np.uint64)).tolist() == [2**32 - 2]


def test_no_patients_and_patients_without_images() -> None:
    assert draw_views([], 2, SystemGenerator()).shape == (0, 2)
    with pytest.raises(InputError, match="patient number 1"):
        draw_views([np.arange(2), np.arange(0)], 1, SystemGenerator())


def test_the_data_set_is_left_alone() -> None:
    images = np.arange(8)
    draw_views([images], 8, SystemGenerator())
    assert images.tolist() == list(range(8))
