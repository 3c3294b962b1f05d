# SPDX-License-Identifier: Apache-2.0
"""The bound against closed forms, against a direct transcription of the theorem, against the published figures, and by simulation."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simulations.audit.bounds import canaries_needed, epsilon_lower_bound, guesses_needed, p_value, perfect_bound


def by_the_book(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """Theorem 5.2 written out term by term, in exact binomial sums."""
    chance = math.exp(epsilon) / (1 + math.exp(epsilon))

    def at_least(k: int) -> float:
        return math.fsum(math.comb(r, j) * chance**j * (1 - chance) ** (r - j) for j in range(max(k, 0), r + 1))

    slope = max(((at_least(v - i) - at_least(v)) / i for i in range(1, v + 1)), default=0.0)
    return min(1.0, at_least(v) + 2 * m * delta * slope)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.data(), st.floats(0, 6), st.sampled_from([0.0, 1e-5, 1e-3, 0.1]))
def test_p_value_is_the_theorem(m: int, data: st.DataObject, epsilon: float, delta: float) -> None:
    r = data.draw(st.integers(0, m))
    v = data.draw(st.integers(0, r))
    assert p_value(m, r, v, epsilon, delta) == pytest.approx(by_the_book(m, r, v, epsilon, delta), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("m", "confidence"), [(10, 0.95), (1000, 0.95), (2800, 0.999)])
def test_all_right_without_delta_is_a_closed_form(m: int, confidence: float) -> None:
    chance = (1 - confidence) ** (1 / m)
    assert perfect_bound(m, m, 0.0, confidence) == pytest.approx(math.log(chance / (1 - chance)), abs=1e-6)


def test_the_published_limit_of_a_thousand_canaries() -> None:
    assert round(perfect_bound(1000, 1000, 0.0, 0.95), 1) == 5.8
    assert round(perfect_bound(1000, 1000, 1e-5, 0.95), 1) == 5.8


def test_twice_epsilon_three_needs_about_2800_canaries_at_99_9_percent() -> None:
    needed = canaries_needed(6.0, 0.0, 0.999)
    assert needed == math.ceil(math.log(0.001) / math.log(1 / (1 + math.exp(-6.0))))
    assert 2750 < needed < 2850


def test_delta_caps_what_can_be_proved() -> None:
    assert canaries_needed(6.0, 1e-5, 0.999) is None
    assert perfect_bound(100_000, 100_000, 1e-5, 0.999) < 4.3
    assert canaries_needed(6.0, 1e-6, 0.999) == pytest.approx(3090, abs=100)


def test_needed_is_the_fewest() -> None:
    for epsilon, delta in ((2.0, 1e-5), (4.0, 1e-6)):
        needed = canaries_needed(epsilon, delta, 0.999)
        assert needed is not None
        assert perfect_bound(needed, needed, delta, 0.999) >= epsilon - 1e-6
        assert perfect_bound(needed - 1, needed - 1, delta, 0.999) < epsilon
        guesses = guesses_needed(2 * needed, epsilon, delta, 0.999)
        assert guesses is not None
        assert (
            perfect_bound(2 * needed, guesses, delta, 0.999) >= epsilon - 1e-6 > perfect_bound(2 * needed, guesses - 1, delta, 0.999) - 1e-6
        )


def test_coin_tossing_proves_nothing() -> None:
    assert epsilon_lower_bound(1000, 1000, 500, 1e-5, 0.95) == 0
    assert epsilon_lower_bound(1000, 0, 0, 1e-5, 0.95) == 0


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0])
def test_randomised_response_is_rarely_refuted_and_the_bound_is_near(epsilon: float) -> None:
    """Randomised response is exactly ε-private and its answer is right with probability e^ε/(1+e^ε): the theorem is tight for it."""
    random = np.random.default_rng(7)
    right = random.binomial(2000, 1 / (1 + math.exp(-epsilon)), size=4000)
    refuted = {v: p_value(2000, 2000, v, epsilon, 0.0) <= 0.05 for v in set(right.tolist())}
    assert 0.03 < np.mean([refuted[v] for v in right.tolist()]) < 0.06
    assert epsilon_lower_bound(2000, 2000, int(np.median(right)), 0.0, 0.95) > epsilon - 0.15


def test_nonsense_is_refused() -> None:
    for wrong in ((10, 11, 5, 1.0, 0.0), (10, 5, 6, 1.0, 0.0), (10, 5, 5, -1.0, 0.0), (10, 5, 5, 1.0, 1.5)):
        with pytest.raises(ValueError, match="not an audit"):
            p_value(*wrong)
