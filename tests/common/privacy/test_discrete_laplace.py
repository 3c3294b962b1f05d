# SPDX-License-Identifier: Apache-2.0
import itertools
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from common.errors import InputError
from common.privacy.discrete_laplace import (
    discrete_laplace_noise,
    draw_below,
    draw_discrete_laplace,
    draw_exponential_coin,
    noise_variance,
)
from common.privacy.generator import SystemGenerator

FALSE_ALARM = 1e-9
DRAWS = 20_000


class Script(SystemGenerator):
    """Hands out chosen words; counts them."""

    def __init__(self, *words: int) -> None:
        super().__init__()
        self._words = list(words)

    def words(self, count: int) -> np.ndarray:
        taken, self._words = self._words[:count], self._words[count:]
        if len(taken) < count:
            raise IndexError
        return np.array(taken, dtype=np.uint64)


def probability(k: int, epsilon: float) -> float:
    a = math.exp(-epsilon)
    return (1 - a) / (1 + a) * a ** abs(k)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 2.5])
def test_draws_follow_the_closed_form(epsilon: float) -> None:
    """Chi-square over integers with at least 20 expected draws each, both tails pooled."""
    drawn = discrete_laplace_noise((DRAWS,), epsilon, SystemGenerator())
    a = math.exp(-epsilon)
    last = max(k for k in range(400) if probability(k, epsilon) * DRAWS >= 20)
    tail = a ** (last + 1) / (1 + a) * DRAWS
    inside = range(-last, last + 1)
    expected = np.array([tail, *(probability(k, epsilon) * DRAWS for k in inside), tail])
    observed = np.array([(drawn < -last).sum(), *((drawn == k).sum() for k in inside), (drawn > last).sum()])
    assert expected.sum() == pytest.approx(DRAWS)
    assert stats.chisquare(observed, expected).pvalue > FALSE_ALARM


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 2.5])
def test_variance(epsilon: float) -> None:
    assert noise_variance(epsilon) == pytest.approx(sum(probability(k, epsilon) * k * k for k in range(-4000, 4001)), rel=1e-9)
    a = math.exp(-epsilon)
    assert noise_variance(epsilon) == pytest.approx(2 * a / (1 - a) ** 2, rel=1e-9)


@pytest.mark.parametrize("x", [Fraction(0), Fraction(1, 3), Fraction(1)])
def test_the_exponential_coin_is_exact(x: Fraction) -> None:
    """All paths of Algorithm 1 with their exact probabilities: heads adds up to the series of exp(-x)."""
    heads, survive = Fraction(0), Fraction(1)
    for k in range(1, 30):
        stop = survive * (1 - x / k)
        heads += stop if k % 2 else 0
        survive *= x / k
    assert float(heads) == pytest.approx(math.exp(-x), rel=1e-15)
    generator = SystemGenerator()
    found = sum(draw_exponential_coin(x, generator) for _ in range(DRAWS))
    assert stats.binomtest(found, DRAWS, math.exp(-x)).pvalue > FALSE_ALARM


def test_the_exponential_coin_stops_where_the_algorithm_says() -> None:
    """x = 1/2: the first draw is out of 2, the second out of 4, the third out of 6; below 1 goes on."""
    for first, second, third in itertools.product(range(2), range(4), range(6)):
        try:
            outcome = draw_exponential_coin(Fraction(1, 2), Script(first, second, third))
        except IndexError:
            continue  # all three went on
        assert outcome == (first >= 1 or (second < 1 and third >= 1))


def test_integers_below_a_bound_are_uniform_and_rejected_not_folded() -> None:
    assert draw_below(1, SystemGenerator()) == 0
    assert draw_below(5, Script(7, 6, 5, 4)) == 4, "three bits; 5, 6 and 7 are drawn again"
    assert draw_below(2**64 + 1, Script(1, 2, 1, 0)) == 2**64, "2^64 + 2 is out of range"
    found = Counter(draw_below(6, generator) for generator in [SystemGenerator()] for _ in range(DRAWS))
    assert stats.chisquare([found[k] for k in range(6)]).pvalue > FALSE_ALARM


def test_algorithm_two_by_hand() -> None:
    """epsilon = 2/3, so s = 2 and t = 3: u = 2 passes its coin at once; v = 1; magnitude (2 + 3 * 1) // 2 = 2; then the sign."""
    u, passes, one_more, no_more = [2], [2], [0, 2], [1]  # a draw out of 1 takes no word, so exp(-1) begins with a draw out of 2
    assert draw_discrete_laplace(Fraction(2, 3), Script(*u, *passes, *one_more, *no_more, 0)) == 2
    assert draw_discrete_laplace(Fraction(2, 3), Script(*u, *passes, *one_more, *no_more, 1)) == -2
    fails = [0, 5]  # out of 3 goes on, out of 6 stops at the second: tails, so u is drawn again
    assert draw_discrete_laplace(Fraction(2, 3), Script(*u, *fails, *u, *passes, *one_more, *no_more, 1)) == -2


def test_a_negative_zero_is_drawn_again() -> None:
    zero = [0, 1]  # u = 0 passes without a word, v = 0
    assert draw_discrete_laplace(Fraction(1, 3), Script(*zero, 0)) == 0
    with pytest.raises(IndexError):
        draw_discrete_laplace(Fraction(1, 3), Script(*zero, 1))
    assert draw_discrete_laplace(Fraction(1, 3), Script(*zero, 1, *zero, 0)) == 0


def test_noise_never_repeats_and_has_its_shape() -> None:
    first, second = (discrete_laplace_noise((2, 16), 0.01, SystemGenerator()) for _ in range(2))
    assert first.shape == (2, 16)
    assert first.dtype == np.int64
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("parameter", [0.0, -1.0, math.nan, math.inf, 1e-9])
def test_a_parameter_without_protection_or_without_meaning_is_refused(parameter: float) -> None:
    with pytest.raises(InputError, match="choose another epsilon"):
        discrete_laplace_noise((1,), parameter, SystemGenerator())
