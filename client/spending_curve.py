# SPDX-License-Identifier: Apache-2.0
"""ε after a part of a plan, cheap enough to be written down after every round.

Privacy loss distributions cost a quarter of a second. For the whole plan they are known from its calibration; they are computed once
more, for half of it. In between the smaller of two upper bounds is shown: Rényi accounting of the steps so far, and the distributions at
the end of the half. So what is shown never exceeds what the whole plan costs, and is exact (pessimistic PLD) where a half ends.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from client.egress_spent import epsilon_bound
from common.privacy.accountant import epsilon_pld, event_to_json, poisson_gaussian
from common.privacy.calibration import PrivacyPlan

PARTS: Final = 2


def epsilon_after(plan: PrivacyPlan, steps: int) -> float:
    """Upper bound of ε after `steps` (1…plan.steps) of the plan, at its δ; decides nothing, the ledger does."""
    ends = [-(-part * plan.steps // PARTS) for part in range(1, PARTS + 1)]
    end = next(end for end in ends if end >= steps)
    at_end = plan.epsilon if end == plan.steps else _by_distributions(plan.sampling_rate, plan.accounted_noise_multiplier, end, plan.delta)
    return at_end if end == steps else min(at_end, _by_renyi(plan, steps))


def _by_renyi(plan: PrivacyPlan, steps: int) -> float:
    one = event_to_json(poisson_gaussian(plan.sampling_rate, plan.accounted_noise_multiplier, 1))
    return epsilon_bound([one] * steps, plan.delta)


@lru_cache(maxsize=64)
def _by_distributions(sampling_rate: float, noise_multiplier: float, steps: int, delta: float) -> float:
    """Shared by the sites of a process: the plan is the study's."""
    return epsilon_pld([poisson_gaussian(sampling_rate, noise_multiplier, steps)], delta)
