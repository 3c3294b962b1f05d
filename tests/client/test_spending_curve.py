# SPDX-License-Identifier: Apache-2.0
from collections.abc import Iterator
from typing import Any

import pytest

from client import spending_curve
from client.spending_curve import epsilon_after
from common.privacy.accountant import epsilon_pld, epsilon_rdp, poisson_gaussian
from common.privacy.calibration import PrivacyPlan, plan_privacy
from common.study import PatientPrivacy


@pytest.fixture(scope="module")
def plan() -> PrivacyPlan:
    return plan_privacy(PatientPrivacy(epsilon=8.0), 0.05, 302, 13_889)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many steps each computation of distributions was for."""
    found: list[int] = []

    def counting(history: list[Any], delta: float) -> float:
        found.append(history[0].count)
        return epsilon_pld(history, delta)

    spending_curve._by_distributions.cache_clear()
    monkeypatch.setattr(spending_curve, "epsilon_pld", counting)
    yield found
    spending_curve._by_distributions.cache_clear()


def exactly(plan: PrivacyPlan, steps: int) -> float:
    return epsilon_pld([poisson_gaussian(plan.sampling_rate, plan.accounted_noise_multiplier, steps)], plan.delta)


def test_it_ends_at_what_the_plan_costs_where_renyi_would_look_like_an_overrun(plan: PrivacyPlan) -> None:
    assert epsilon_rdp([poisson_gaussian(plan.sampling_rate, plan.accounted_noise_multiplier, 302)], plan.delta) > 9
    assert epsilon_after(plan, 302) == plan.epsilon <= 8.0


def test_it_is_never_below_the_truth_nor_above_the_plan_and_never_falls(plan: PrivacyPlan) -> None:
    shown = {steps: epsilon_after(plan, steps) for steps in (1, 10, 140, 151, 152, 226, 290, 301, 302)}
    assert list(shown.values()) == sorted(shown.values())
    for steps in (1, 140, 301):
        assert exactly(plan, steps) - 1e-9 <= shown[steps] <= plan.epsilon


def test_it_is_the_pessimistic_distributions_own_number_at_half_of_the_plan(plan: PrivacyPlan) -> None:
    assert epsilon_after(plan, 151) == exactly(plan, 151)


def test_distributions_are_computed_once_for_a_whole_plan(plan: PrivacyPlan, computed: list[int]) -> None:
    for _site in range(2):
        for steps in range(10, 303, 4):
            epsilon_after(plan, steps)
    assert computed == [151]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_plan_of_few_steps(steps: int) -> None:
    short = plan_privacy(PatientPrivacy(epsilon=2.0), 0.5, 3, 100)
    assert exactly(short, steps) - 1e-9 <= epsilon_after(short, steps) <= short.epsilon
