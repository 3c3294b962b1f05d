# SPDX-License-Identifier: Apache-2.0
"""Shares, distances and quantiles from noisy tables: closed forms without noise, and the spread that is claimed with it."""

import math

import numpy as np
import pytest

from common.survey_plan import Table
from server.surveys.figures import NoisyTable, distance, numbers

CELLS = Table("classes", "classes", ("a", "b", "c"))
AGE = Table("feature/age", "feature", ("0 to 10", "10 to 20", "20 to 30", "30 to 40", "missing"), "age", (0.0, 10.0, 20.0, 30.0, 40.0))


def table(*counts: float, error: float = 1.0, of: Table = CELLS) -> NoisyTable:
    return NoisyTable(of, np.array(counts, dtype=np.float64), error)


def test_shares_and_their_errors_are_those_of_the_delta_method() -> None:
    found = table(60.0, 30.0, 10.0, error=2.0)
    assert (found.total.value, found.total.error) == (100.0, 2.0 * math.sqrt(3))
    assert found.shares.tolist() == [0.6, 0.3, 0.1]
    assert found.share_errors[0] == pytest.approx(0.02 * math.sqrt(0.4**2 + 2 * 0.6**2))


def test_counts_below_zero_stay_and_too_few_patients_are_not_measurable() -> None:
    assert table(100.0, -3.0, 3.0).shares[1] == -0.03
    assert not table(3.0, 2.0, 1.0, error=1.0).is_measurable
    assert not table(-3.0, 1.0, 1.0).is_measurable
    assert table(4.0, 2.0, 1.0, error=1.0).is_measurable


def test_distance_is_half_the_difference_of_the_shares() -> None:
    found = distance(table(100.0, 0.0, 0.0), table(0.0, 50.0, 50.0))
    assert found is not None and found.value == 1.0 and found.is_sure
    assert distance(table(3.0, 1.0, 0.0), table(100.0, 0.0, 0.0)) is None


def test_sites_that_are_alike_are_within_what_noise_alone_gives() -> None:
    rng, hits, values, expected = np.random.default_rng(1), 0, [], []
    for _ in range(400):
        one, other = (table(*(np.array([200.0, 120.0, 80.0]) + rng.normal(0, 8, 3)), error=8.0) for _ in range(2))
        found = distance(one, other)
        assert found is not None
        hits += found.is_sure
        values.append(found.value)
        expected.append(found.by_noise)
    assert np.mean(values) == pytest.approx(np.mean(expected), rel=0.08)
    assert hits / 400 < 0.06


def test_a_sum_of_sites_adds_counts_and_variances() -> None:
    both = NoisyTable.sum_of([table(1.0, 2.0, 3.0, error=3.0), table(4.0, 5.0, 6.0, error=4.0)])
    assert both.counts.tolist() == [5.0, 7.0, 9.0] and both.error == 5.0


def test_mean_deviation_and_quantiles_of_a_histogram() -> None:
    found = numbers(table(100.0, 100.0, 100.0, 100.0, 100.0, error=1e-9, of=AGE))
    assert found.mean is not None and found.mean.value == pytest.approx(20.0)
    assert found.deviation == pytest.approx(math.sqrt(125.0))
    assert [one[0] for one in found.quantiles if one] == pytest.approx([10.0, 20.0, 30.0])
    assert found.missing is not None and found.missing.value == pytest.approx(0.2)


def test_the_errors_of_mean_and_quantiles_cover_what_noise_does() -> None:
    rng, true = np.random.default_rng(2), np.array([50.0, 200.0, 300.0, 100.0, 20.0])
    exact = numbers(table(*true, error=1e-9, of=AGE))
    assert exact.mean is not None and exact.quantiles[1] is not None
    means, inside = [], 0
    for _ in range(300):
        found = numbers(table(*(true + rng.normal(0, 10, 5)), error=10.0, of=AGE))
        assert found.mean is not None and found.quantiles[1] is not None
        means.append((found.mean.value - exact.mean.value) / found.mean.error)
        inside += found.quantiles[1][1] <= exact.quantiles[1][0] <= found.quantiles[1][2]
    assert np.std(means) == pytest.approx(1.0, abs=0.15)
    assert inside / 300 > 0.9


def test_a_histogram_that_drowns_in_noise_gives_no_figures() -> None:
    found = numbers(table(5.0, -3.0, 2.0, 1.0, 0.0, error=20.0, of=AGE))
    assert (found.mean, found.deviation, found.quantiles, found.missing) == (None, None, (None, None, None), None)
