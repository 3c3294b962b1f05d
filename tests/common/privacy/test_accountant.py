# SPDX-License-Identifier: Apache-2.0
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from common.errors import InputError, StorageError
from common.privacy.accountant import (
    UNPROTECTED_JSON,
    discrete_laplace,
    epsilon_pld,
    epsilon_rdp,
    event_from_json,
    event_to_json,
    gaussian,
    poisson_gaussian,
    unprotected,
)


def analytic_gaussian_epsilon(noise: float, delta: float) -> float:
    """Balle and Wang 2018, theorem 5: the exact curve of one Gaussian mechanism of sensitivity 1."""

    def gap(epsilon: float) -> float:
        return norm.cdf(0.5 / noise - epsilon * noise) - math.exp(epsilon) * norm.cdf(-0.5 / noise - epsilon * noise) - delta

    return float(brentq(gap, 0, 200)) if gap(0) > 0 else 0.0


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-6])
def test_one_gaussian_is_the_closed_form(noise: float, delta: float) -> None:
    exact = analytic_gaussian_epsilon(noise, delta)
    for history in ([gaussian(noise)], [poisson_gaussian(1.0, noise, 1)]):
        assert exact - 1e-9 <= epsilon_pld(history, delta) <= exact * 1.001 + 1e-6


def test_many_gaussians_are_one_with_less_noise() -> None:
    exact = analytic_gaussian_epsilon(10 / math.sqrt(16), 1e-5)
    assert exact - 1e-9 <= epsilon_pld([gaussian(10, 7), gaussian(10, 9)], 1e-5) <= exact * 1.001


def test_discrete_laplace_is_pure() -> None:
    assert epsilon_pld([discrete_laplace(0.1)], 1e-9) == pytest.approx(0.1, rel=1e-3)
    assert epsilon_rdp([discrete_laplace(0.1), discrete_laplace(0.2, sensitivity=2)], 1e-9) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "epsilon", "renyi"),
    [
        (0.15, 4.211, 50, 1.00, 1.10),
        (0.15, 2.321, 100, 3.00, 3.29),
        (0.15, 1.186, 100, 7.98, 8.82),
        (0.10, 1.680, 100, 2.99, 3.31),
        (0.12, 3.447, 50, 1.00, 1.10),
    ],
)
def test_measured_recipes(rate: float, noise: float, steps: int, epsilon: float, renyi: float) -> None:
    history = [poisson_gaussian(rate, noise, steps)]
    assert epsilon_pld(history, 1e-5) == pytest.approx(epsilon, abs=0.012)
    assert epsilon_rdp(history, 1e-5) == pytest.approx(renyi, rel=0.02)


@pytest.mark.parametrize("rate", [0.01, 0.15, 1.0])
@pytest.mark.parametrize("noise", [0.7, 2.0, 30.0])
@pytest.mark.parametrize("steps", [1, 300])
def test_renyi_is_an_upper_bound(rate: float, noise: float, steps: int) -> None:
    history = [poisson_gaussian(rate, noise, steps)]
    assert 0 <= epsilon_pld(history, 1e-6) <= epsilon_rdp(history, 1e-6) + 1e-6


def test_composition_does_not_depend_on_cuts_or_order() -> None:
    first, second = poisson_gaussian(0.1, 2.0, 30), gaussian(8.0)
    whole = epsilon_pld([first, second], 1e-6)
    parts = [second] + [poisson_gaussian(0.1, 2.0, 10)] * 3
    assert epsilon_pld(parts, 1e-6) == whole > epsilon_pld([first], 1e-6)


def test_four_runs_composed_cost_less_than_their_sum_and_more_than_one() -> None:
    one = poisson_gaussian(0.1, 1.68, 100)
    assert 1.5 * epsilon_pld([one], 1e-5) < epsilon_pld([one] * 4, 1e-5) < 4 * epsilon_pld([one], 1e-5)


def test_edges_are_numbers_not_exceptions() -> None:
    for epsilon in (epsilon_pld, epsilon_rdp):
        assert epsilon([], 1e-6) == 0.0
        assert epsilon([unprotected()], 1e-6) == math.inf
        assert epsilon([gaussian(1.0), unprotected()], 1e-6) == math.inf
        assert epsilon([poisson_gaussian(0.1, 0.0, 5)], 1e-6) == math.inf
        assert epsilon([poisson_gaussian(0.1, 1e-300, 5)], 1e-6) == math.inf
        assert 100 < epsilon([poisson_gaussian(0.1, 0.05, 1000)], 1e-6) < math.inf
        assert 0 <= epsilon([poisson_gaussian(0.1, 9000.0, 1)], 1e-6) < 0.01


def test_a_history_of_a_hundred_rounds_is_cheap_because_equal_mechanisms_are_one() -> None:
    rounds = [poisson_gaussian(0.15, 2.321, 1)] * 100
    assert epsilon_pld(rounds, 1e-5) == epsilon_pld([poisson_gaussian(0.15, 2.321, 100)], 1e-5)


EVENTS = st.one_of(
    st.builds(poisson_gaussian, st.floats(1e-9, 1), st.floats(0, 1e4), st.integers(1, 10**6)),
    st.builds(gaussian, st.floats(0.01, 1e4), st.integers(1, 100)),
    st.builds(discrete_laplace, st.floats(1e-6, 10), st.integers(1, 50)),
    st.builds(unprotected),
)


@settings(max_examples=100)
@given(EVENTS)
def test_events_survive_their_json(event) -> None:
    text = event_to_json(event)
    assert event_from_json(text) == event
    assert event_to_json(event_from_json(text)) == text


def test_the_json_is_canonical() -> None:
    assert event_to_json(poisson_gaussian(0.15, 2.5, 10)) == (
        '{"count":10,"event":{"event":{"noise_multiplier":2.5,"type":"GaussianDpEvent"},'
        '"sampling_probability":0.15,"type":"PoissonSampledDpEvent"},"type":"SelfComposedDpEvent"}'
    )
    assert event_to_json(unprotected()) == UNPROTECTED_JSON


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        '{"type":"ZCDpEvent","rho":1}',
        '{"type":"GaussianDpEvent"}',
        '{"type":"GaussianDpEvent","noise_multiplier":"1"}',
        '{"type":"GaussianDpEvent","noise_multiplier":-1}',
        '{"type":"GaussianDpEvent","noise_multiplier":NaN}',
        '{"type":"GaussianDpEvent","noise_multiplier":1,"extra":2}',
        '{"type":"SelfComposedDpEvent","count":1.5,"event":{"type":"NonPrivateDpEvent"}}',
    ],
)
def test_anything_else_is_not_an_event(text: str) -> None:
    with pytest.raises(StorageError, match="not a privacy event"):
        event_from_json(text)


def test_foreign_events_and_senseless_numbers_are_refused() -> None:
    from dp_accounting import dp_event

    with pytest.raises(InputError, match="ZCDpEvent"):
        event_to_json(dp_event.ZCDpEvent(1.0))
    for numbers in [(0.0, 1.0, 1), (1.1, 1.0, 1), (0.1, -1.0, 1), (0.1, 1.0, 0)]:
        with pytest.raises(InputError, match="not a mechanism"):
            poisson_gaussian(*numbers)
    with pytest.raises(InputError, match="delta"):
        epsilon_rdp([gaussian(1.0)], 0.0)
