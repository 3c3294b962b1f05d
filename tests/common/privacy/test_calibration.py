# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from common.errors import StudyError
from common.privacy import calibration
from common.privacy.accountant import epsilon_pld, poisson_gaussian
from common.privacy.calibration import plan_privacy
from common.privacy.engines import failure_mass
from common.privacy.grid import relative_sensitivity
from common.privacy.noise import tail_mass
from common.study import PatientPrivacy

PARAMETERS = 13_889


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps", "measured"),
    [(1.0, 0.15, 50, 4.211), (3.0, 0.15, 100, 2.321), (8.0, 0.15, 100, 1.186), (3.0, 0.1, 100, 1.680)],
)
def test_the_measured_recipes_come_out(epsilon: float, rate: float, steps: int, measured: float) -> None:
    plan = plan_privacy(PatientPrivacy(epsilon=epsilon, delta=1e-5), rate, steps, PARAMETERS)
    assert plan.noise_multiplier == pytest.approx(measured, rel=0.005)


@pytest.mark.parametrize(
    ("epsilon", "rate", "steps"),
    [(3.0, 0.15, 100), (0.1, 0.1, 2000), (100.0, 1.0, 1), (50.0, 0.5, 100), (8.0, 0.001, 20_000), (20.0, 0.01, 1)],
)
def test_a_plan_spends_nearly_all_and_never_more(epsilon: float, rate: float, steps: int) -> None:
    plan = plan_privacy(PatientPrivacy(epsilon=epsilon), rate, steps, PARAMETERS)
    kept = plan.delta - (1 + math.exp(epsilon)) * tail_mass(PARAMETERS * steps) - failure_mass("bookkeeping", steps)
    spent = epsilon_pld([poisson_gaussian(rate, plan.accounted_noise_multiplier, steps)], kept)
    assert spent == pytest.approx(plan.epsilon, rel=1e-9)
    assert 0.995 * epsilon < plan.epsilon <= epsilon == plan.epsilon_target


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(0.1, 1e-6, 1), (3.0, 1e-7, 10), (100.0, 1e-3, 1)])
def test_rates_so_small_that_hardly_any_noise_is_needed(epsilon: float, rate: float, steps: int) -> None:
    plan = plan_privacy(PatientPrivacy(epsilon=epsilon), rate, steps, PARAMETERS)
    assert 0 <= plan.epsilon <= epsilon and 0.02 < plan.noise_multiplier < 10


@pytest.mark.parametrize(("engine", "float_errors"), [("opacus", 0.0), ("bookkeeping", 2 * math.hypot(2**-10, 2**-8) + 500 * 2**-20)])
def test_the_grid_and_float_sums_are_paid_for(engine: str, float_errors: float) -> None:
    plan = plan_privacy(PatientPrivacy(clipping_norm=0.15, engine=engine), 0.15, 100, 1_000_000)
    drawn = plan.noise_multiplier * plan.clipping_norm
    moved = plan.clipping_norm * (1 + 2.0**-17 + float_errors) + plan.grid_step * math.sqrt(1_000_000)
    assert plan.grid_step == 0.15 * 2.0**-20
    assert drawn / moved == pytest.approx(plan.accounted_noise_multiplier, rel=1e-12)
    assert relative_sensitivity(1_000_000) < 1.001


def test_more_steps_and_higher_rates_need_more_noise_and_the_clipping_norm_does_not_matter() -> None:
    privacy = PatientPrivacy()
    base = plan_privacy(privacy, 0.1, 100, PARAMETERS).noise_multiplier
    assert plan_privacy(privacy, 0.1, 200, PARAMETERS).noise_multiplier > base
    assert plan_privacy(privacy, 0.2, 100, PARAMETERS).noise_multiplier > base
    assert plan_privacy(PatientPrivacy(epsilon=1.0), 0.1, 100, PARAMETERS).noise_multiplier > base
    assert plan_privacy(PatientPrivacy(clipping_norm=9.0), 0.1, 100, PARAMETERS).noise_multiplier == base


def test_equal_studies_are_planned_once(monkeypatch) -> None:
    first = plan_privacy(PatientPrivacy(), 0.3, 7, PARAMETERS)
    monkeypatch.setattr(calibration, "epsilon_pld", lambda *_: pytest.fail("planned again"))
    assert plan_privacy(PatientPrivacy(), 0.3, 7, PARAMETERS) == first
    assert plan_privacy(PatientPrivacy(clipping_norm=2.0), 0.3, 7, PARAMETERS).epsilon == first.epsilon


def test_absurd_noise_is_refused_with_a_remedy() -> None:
    with pytest.raises(StudyError, match="raise epsilon"):
        plan_privacy(PatientPrivacy(epsilon=0.001), 1.0, 10_000, PARAMETERS)


def test_a_tail_mass_that_is_not_negligible_is_refused(monkeypatch) -> None:
    monkeypatch.setattr(calibration, "tail_mass", lambda count: count * 1e-12)
    with pytest.raises(StudyError, match="delta"):
        plan_privacy(PatientPrivacy(), 0.1, 100, PARAMETERS)
    monkeypatch.setattr(calibration, "tail_mass", lambda count: count * 1e-16)
    plan = plan_privacy(PatientPrivacy(), 0.1, 100, PARAMETERS)
    assert epsilon_pld([poisson_gaussian(0.1, plan.accounted_noise_multiplier, 100)], plan.delta) < plan.epsilon


def test_a_wrong_sampler_costs_more_at_a_large_epsilon(monkeypatch) -> None:
    """Leaving the ideal mechanism and coming back on the neighbour: (1 + e^ε) η."""
    monkeypatch.setattr(calibration, "tail_mass", lambda count: 1e-8 / (1 + math.exp(8)))
    plan_privacy(PatientPrivacy(epsilon=7.99), 0.1, 10, PARAMETERS)
    with pytest.raises(StudyError, match="smaller epsilon"):
        plan_privacy(PatientPrivacy(epsilon=8.01), 0.1, 10, PARAMETERS)
