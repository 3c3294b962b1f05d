# SPDX-License-Identifier: Apache-2.0
"""Three accountants against closed forms and against each other.

exact <= PLD (decides, pessimistic) <= RDP (says yes early). PRV (Gopi et al. 2021, arXiv 2106.02848; Opacus' version) bounds ε from both
sides for Gaussian histories and is a cross-check only. GDP is below the truth, and no figure of ours comes from it.
"""

import ast
import math
import warnings
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

import common
from common.errors import InputError, StorageError
from common.privacy.accountant import (
    RENYI_ORDERS,
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


def sampled_gaussian_epsilon(rate: float, noise: float, delta: float) -> float:
    """The exact curve of one Poisson-sampled Gaussian of sensitivity 1, the larger of removing and adding the record.

    With the record the density is (1 - q) N(0, s²) + q N(1, s²), without it N(0, s²); their ratio is monotone, so each hockey-stick
    divergence is a difference of normal tails at the point where the ratio is e^ε (or e^-ε).
    """

    def beyond(level: float, sign: int) -> float:
        """The divergence of the pair whose ratio with/without exceeds `level` (sign 1) or stays below it (sign -1)."""
        if level <= 1 - rate:
            return 0.0
        point = noise**2 * math.log((level - 1 + rate) / rate) + 0.5
        without = norm.cdf(-sign * point / noise)
        mixed = (1 - rate) * without + rate * norm.cdf(-sign * (point - 1) / noise)
        return float(mixed - level * without if sign == 1 else without - mixed / level)

    def gap(epsilon: float) -> float:
        return max(beyond(math.exp(epsilon), 1), beyond(math.exp(-epsilon), -1)) - delta

    return float(brentq(gap, 0, 200)) if gap(0) > 0 else 0.0


@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-6])
def test_one_gaussian_is_the_closed_form(noise: float, delta: float) -> None:
    exact = analytic_gaussian_epsilon(noise, delta)
    for history in ([gaussian(noise)], [poisson_gaussian(1.0, noise, 1)]):
        assert exact - 1e-9 <= epsilon_pld(history, delta) <= exact * 1.001 + 1e-6


@pytest.mark.parametrize("rate", [0.001, 0.05, 0.4, 0.999])
@pytest.mark.parametrize("noise", [0.4, 1.0, 5.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-6])
def test_one_sampled_gaussian_is_the_closed_form(rate: float, noise: float, delta: float) -> None:
    exact = sampled_gaussian_epsilon(rate, noise, delta)
    history = [poisson_gaussian(rate, noise, 1)]
    assert exact - 1e-9 <= epsilon_pld(history, delta) <= exact * 1.001 + 1e-4
    assert epsilon_rdp(history, delta) >= exact


@pytest.mark.parametrize(("noise", "steps"), [(1.0, 1), (4.0, 30), (20.0, 7)])
def test_renyi_is_the_closed_form_of_gaussians(noise: float, steps: int) -> None:
    """Mironov 2017: order a costs a T / (2 s²); to ε by Canonne, Kamath and Steinke 2020, proposition 12."""

    def epsilon(order: int) -> float:
        return order * steps / (2 * noise**2) + math.log1p(-1 / order) - math.log(1e-6 * order) / (order - 1)

    assert epsilon_rdp([gaussian(noise, steps)], 1e-6) == pytest.approx(min(map(epsilon, RENYI_ORDERS)), rel=1e-9)


def prv_bounds(history: list[tuple[float, float, int]], delta: float, error: float) -> tuple[float, float]:
    """Lower and upper bound of ε by PRV; `history` lists noise multiplier, sampling rate, steps. `error` is its error bound in ε."""
    from opacus.accountants import PRVAccountant

    accountant = PRVAccountant()
    accountant.history = list(history)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Optimal order is the largest alpha")  # of its own choice of a grid
        distribution = accountant._get_dprv(eps_error=error, delta_error=delta / 1000)
        lower, _, upper = distribution.compute_epsilon(delta, delta / 1000, error)
    return float(lower), float(upper)


HISTORIES = {
    "small rate": [(1.0, 0.01, 1000)],
    "recipe of 3": [(2.321, 0.15, 100)],
    "recipe of 8": [(1.186, 0.15, 100)],
    "recipe of 1": [(4.211, 0.15, 50)],
    "large rate": [(3.0, 0.3, 200)],
    "little": [(20.0, 0.05, 200)],
    "two runs": [(2.321, 0.15, 60), (1.68, 0.1, 40)],
}


@pytest.mark.parametrize("delta", [1e-5, 1e-6])
@pytest.mark.parametrize("name", HISTORIES)
def test_the_three_accountants_agree_and_are_in_order(name: str, delta: float) -> None:
    history = HISTORIES[name]
    events = [poisson_gaussian(rate, noise, steps) for noise, rate, steps in history]
    lower, upper = prv_bounds(history, delta, error=0.01)
    decided = epsilon_pld(events, delta)
    assert upper - lower < 0.025, "the cross-check is too wide to check anything"
    assert lower <= decided <= upper
    assert decided < epsilon_rdp(events, delta) < 1.3 * upper


def test_the_figure_of_gdp_is_too_small_and_is_used_nowhere() -> None:
    from opacus.accountants.analysis.gdp import compute_eps_poisson

    claimed = compute_eps_poisson(steps=1000, noise_multiplier=1.0, sample_rate=0.01, delta=1e-5)
    assert claimed < 0.9 * prv_bounds(HISTORIES["small rate"], 1e-5, error=0.01)[0]
    code = Path(common.__file__).resolve().parents[1]
    names = set()
    for path in (file for package in ("common", "client", "server", "simulations") for file in (code / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names |= {alias.name for alias in node.names} if isinstance(node, ast.Import | ast.ImportFrom) else set()
            names |= {node.module or ""} if isinstance(node, ast.ImportFrom) else set()
            names |= {node.attr} if isinstance(node, ast.Attribute) else {node.id} if isinstance(node, ast.Name) else set()
    assert "epsilon_pld" in names
    assert [name for name in names if "gdp" in name.lower()] == []


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


@pytest.mark.parametrize("count", [1, 4, 32])
def test_counts_beside_training_cost_at_most_their_sum(count: int) -> None:
    training, counts = poisson_gaussian(0.1, 2.0, 50), [discrete_laplace(0.02)] * count
    alone, together = epsilon_pld([training], 1e-6), epsilon_pld([training, *counts], 1e-6)
    assert alone < together <= alone + 0.02 * count + 1e-3
    assert together <= epsilon_rdp([training, *counts], 1e-6)
    assert epsilon_rdp([training, *counts], 1e-6) == pytest.approx(epsilon_rdp([training], 1e-6) + 0.02 * count)


def test_more_of_anything_costs_more() -> None:
    base = epsilon_pld([poisson_gaussian(0.1, 2.0, 50)], 1e-6)
    dearer = [(0.1, 2.0, 51), (0.11, 2.0, 50), (0.1, 1.9, 50)]
    assert all(epsilon_pld([poisson_gaussian(*numbers)], 1e-6) > base for numbers in dearer)
    assert epsilon_pld([poisson_gaussian(0.1, 2.0, 50)], 1e-7) > base > epsilon_pld([poisson_gaussian(0.1, 2.0, 50)], 1e-5)


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
