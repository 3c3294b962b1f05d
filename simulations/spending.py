# SPDX-License-Identifier: Apache-2.0
"""What a site's ledger says, for the report: steps that were charged, and ε of all of them by PLD."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from client.site import open_ledger
from common.privacy.accountant import epsilon_pld, event_from_json
from common.privacy.charge_book import Line
from common.privacy.charges import Charge, State
from common.study import PatientPrivacy, Study
from simulations.results import PrivacyResult


@dataclass(frozen=True)
class Spending:
    """One site's charges for training, and what both lines of patients spent. ε is None without privacy."""

    charges: tuple[Charge, ...]
    epsilon: float | None
    held_out_epsilon: float | None = None

    @property
    def steps(self) -> int:
        """Steps that were charged."""
        return sum(charge.steps for charge in self.charges)


def read_spending(folder: Path, study: Study) -> Spending:
    """The charges of the site in `folder` that were not settled to zero."""
    everything = [charge for charge in open_ledger(folder).charges() if charge.state is not State.SETTLED]
    training, held_out = (tuple(charge for charge in everything if charge.key.line is line) for line in (Line.TRAINING, Line.HELD_OUT))
    if not isinstance(study.privacy, PatientPrivacy):
        return Spending(training, None)
    delta = study.privacy.delta
    spent = [_epsilon(tuple(charge.event_json for charge in charges), delta) for charges in (training, held_out)]
    return Spending(training, spent[0], spent[1])


@lru_cache(maxsize=256)
def _epsilon(events: tuple[str, ...], delta: float) -> float:
    """ε of a history; equal sites share one computation."""
    return epsilon_pld([event_from_json(event) for event in events], delta)


def describe_mechanism(study: Study, spending: Sequence[Spending]) -> PrivacyResult | None:
    """The mechanism in public numbers, as it was charged; None without privacy or when nothing was charged."""
    privacy = study.privacy
    events = [charge.event_json for one in spending for charge in one.charges]
    if not isinstance(privacy, PatientPrivacy) or not events:
        return None
    return PrivacyResult(
        unit="one patient with all their images",
        neighbouring="add or remove one patient",
        accountant="PLD (dp-accounting, pessimistic)",
        epsilon_target=privacy.epsilon,
        delta=privacy.delta,
        noise_multiplier=event_from_json(events[0]).event.event.noise_multiplier,
        sampling_rate=study.training.sampling_rate,
        steps=study.total_steps,
        clipping_norm=privacy.clipping_norm,
        views_per_patient=privacy.views_per_patient,
    )
