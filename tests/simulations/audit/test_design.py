# SPDX-License-Identifier: Apache-2.0
"""The size of an audit, chosen before anything is trained."""

from dataclasses import replace

import pytest

from common.errors import AuditFailed, InputError
from common.privacy.accountant import epsilon_pld, poisson_gaussian
from common.privacy.calibration import PrivacyPlan, plan_privacy
from common.study import PatientPrivacy
from simulations.audit.bounds import perfect_bound
from simulations.audit.design import FAILING_CONFIDENCE, MOST_CANARIES, claim_at, design_audit
from simulations.audit.verdict import Bound, Verdict, check, judge


def plan(epsilon: float, delta: float = 1e-5) -> PrivacyPlan:
    return plan_privacy(PatientPrivacy(epsilon=epsilon, delta=delta), 0.15, 200, 10_000)


@pytest.mark.parametrize(("epsilon", "delta"), [(1.0, 1e-5), (3.0, 1e-5), (3.0, 1e-6)])
def test_a_perfect_attack_can_prove_twice_the_claim(epsilon: float, delta: float) -> None:
    design = design_audit(plan(epsilon, delta))
    assert design.possible_epsilon >= 2 * epsilon - 1e-6
    assert perfect_bound(design.canaries, design.guesses, design.delta, FAILING_CONFIDENCE) == design.possible_epsilon
    assert design.guesses <= design.canaries <= MOST_CANARIES
    assert design.guesses % 2 == 0 or design.guesses == design.canaries
    assert design.possible_epsilon > design.epsilon * 1.4


def test_the_study_s_own_delta_is_kept_where_it_can_be() -> None:
    assert design_audit(plan(1.0)).delta == 1e-5
    assert design_audit(plan(3.0, 1e-6)).delta == 1e-6


def test_a_smaller_delta_is_paid_for_in_the_claim() -> None:
    own = plan(3.0)
    design = design_audit(own)
    assert design.delta == 1e-6
    assert design.epsilon == epsilon_pld([poisson_gaussian(0.15, own.accounted_noise_multiplier, 200)], 1e-6) == claim_at(own, 1e-6)
    assert 3.0 < design.epsilon < 4.0


def test_a_claim_that_no_audit_can_refute_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"ε=8 cannot be audited.*--epsilon 3$"):
        design_audit(plan(8.0))


def test_too_few_canaries_are_refused_with_the_number_that_is_enough() -> None:
    with pytest.raises(InputError, match=r"--canaries 1000: too few.*give at least 3\d\d\d"):
        design_audit(plan(3.0), 1000)
    assert design_audit(plan(3.0), 4000).canaries == 4000


def test_the_verdict_needs_the_control() -> None:
    design = design_audit(plan(1.0))
    low, high = Bound(60, 31, 0.0, 0.0), Bound(60, 60, 2.9, 2.0)
    assert judge(design, low, high) is Verdict.PASSED
    assert judge(design, low, low) is Verdict.INCONCLUSIVE
    assert judge(design, high, high) is judge(design, high, low) is Verdict.FAILED
    assert judge(design, replace(low, epsilon_95=1.5), high) is Verdict.PASSED  # 95 % is shown, 99.9 % decides
    check(Verdict.PASSED, design, low)
    with pytest.raises(AuditFailed, match="the claim is wrong"):
        check(Verdict.FAILED, design, high)
    with pytest.raises(AuditFailed, match="inconclusive"):
        check(Verdict.INCONCLUSIVE, design, low)
