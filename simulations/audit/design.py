# SPDX-License-Identifier: Apache-2.0
"""The size of an audit, fixed by public numbers before anything is trained.

The theorem behind the bound pays 2 m δ for every unit of doubt, so at δ = 1e-5 no number of canaries can prove an ε above about 4 at
99.9 %. Where that stands in the way the same claim is tested at a smaller δ: noise, rate and steps stay the study's own, and the
accountant says which ε they keep at that δ. The bound is compared with that ε.

1. δ: the largest of the study's δ, δ/10, δ/100 … for which a perfect attack can prove twice the study's ε.
2. Canaries: a quarter more than the fewest with which it can, and at least `FEWEST_CANARIES`.
3. Guesses: the fewest with which a perfect attack still proves twice the study's ε; half of them on the highest scores ("in"), half on
   the lowest ("out"). The other canaries are left out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from common.errors import InputError
from common.privacy.accountant import epsilon_pld, poisson_gaussian
from common.privacy.calibration import PrivacyPlan
from simulations.audit.bounds import canaries_needed, guesses_needed, perfect_bound

FAILING_CONFIDENCE: Final = 0.999
SHOWN_CONFIDENCE: Final = 0.95
DEFAULT_EPSILONS: Final = (3.0, 2.0, 1.0, 0.5)
FEWEST_CANARIES: Final = 256
MOST_CANARIES: Final = 5000
SPARE: Final = 1.25
DELTA_STEPS: Final = 4
LARGEST_STRETCH: Final = 4 / 3


@dataclass(frozen=True)
class Design:
    """`epsilon` at `delta` is the claim that is tested: what the mechanism of (`study_epsilon`, `study_delta`) keeps at this δ.

    `possible_epsilon` is what an attack that is always right would prove at 99.9 %.
    """

    study_epsilon: float
    study_delta: float
    epsilon: float
    delta: float
    canaries: int
    guesses: int

    @property
    def possible_epsilon(self) -> float:
        """The bound of a perfect attack at 99.9 %."""
        return perfect_bound(self.canaries, self.guesses, self.delta, FAILING_CONFIDENCE)


def design_audit(plan: PrivacyPlan, canaries: int | None = None) -> Design:
    """The audit of a plan. Raises InputError, with the remedy, when no audit of reasonable size could prove the claim wrong."""
    target = 2 * plan.epsilon_target
    for step in range(DELTA_STEPS):
        delta = float(f"{plan.delta * 10.0**-step:.12g}")
        needed = canaries_needed(target, delta, FAILING_CONFIDENCE)
        if needed is None or needed > (canaries or MOST_CANARIES):
            continue
        epsilon = claim_at(plan, delta)
        if epsilon > LARGEST_STRETCH * plan.epsilon_target:
            break
        count = canaries or min(max(math.ceil(SPARE * needed), FEWEST_CANARIES), MOST_CANARIES)
        guesses = guesses_needed(count, target, delta, FAILING_CONFIDENCE) or count
        return Design(plan.epsilon_target, plan.delta, epsilon, delta, count, guesses + guesses % 2 * (guesses < count))
    raise InputError(_refusal(plan, canaries))


def claim_at(plan: PrivacyPlan, delta: float) -> float:
    """ε that the plan's mechanism keeps at `delta`, by pessimistic PLD."""
    if delta == plan.delta:
        return plan.epsilon
    return epsilon_pld([poisson_gaussian(plan.sampling_rate, plan.accounted_noise_multiplier, plan.steps)], delta)


def _refusal(plan: PrivacyPlan, canaries: int | None) -> str:
    """Why there is no audit, and what to do."""
    target = 2 * plan.epsilon_target
    needed = canaries_needed(target, plan.delta / 10, FAILING_CONFIDENCE)
    if canaries is not None and needed is not None and needed <= MOST_CANARIES:
        return f"audit: --canaries {canaries}: too few to prove ε={target:g}, twice the claim, at 99.9 %; give at least {needed}"
    ideal = -math.log(1 - FAILING_CONFIDENCE) * (1 + math.exp(target))
    smaller = next((epsilon for epsilon in DEFAULT_EPSILONS if epsilon < plan.epsilon_target), plan.epsilon_target / 2)
    return (
        f"audit: ε={plan.epsilon_target:g} cannot be audited: even a perfect attack needs {ideal:,.0f} canaries or more to prove "
        f"ε={target:g}, twice the claim, at 99.9 % (δ={plan.delta:g}); the most is {MOST_CANARIES}. Audit the same code with more noise: "
        f"--epsilon {smaller:g}"
    )
