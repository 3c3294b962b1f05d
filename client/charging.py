# SPDX-License-Identifier: Apache-2.0
"""The order in which something that leaves is charged, made and released, so that all that left has exactly one charge.

    open()    reserve, durable before the first gradient     (or: this left already, here are its stored bytes)
    ...       training, or counting
    close()   reply into the outbox, `releasing` durable     only then may the first byte leave

One process at a time does this for a site (`lock`). Killed between open and close, nothing has left: the same round is done anew under
the same charge. Killed after close, the stored bytes are sent again. A reply that is missing from the outbox after `releasing` is never
computed again.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.numpy import load

from client.ledger.book import Ledger
from client.site import Site
from common.errors import RefusedError, StorageError
from common.files import locked
from common.privacy.accountant import (
    UNPROTECTED_JSON,
    epsilon_pld,
    epsilon_rdp,
    event_from_json,
    event_to_json,
    is_unprotected,
    poisson_gaussian,
)
from common.privacy.calibration import LARGEST_TAIL_SHARE, PrivacyPlan
from common.privacy.charges import ChargeKey, Outbox, Standing, State
from common.protocol import FloatArray, Instruction, RefusalCode, Update
from common.study import PatientPrivacy, Study
from common.tensor_file import tensor_parts

if TYPE_CHECKING:
    from dp_accounting import DpEvent

KEPT_REPLIES = 3
"""As many as the server keeps checkpoints: it goes back by a round for each of its newest ones that is damaged."""


@dataclass(frozen=True)
class ChargedRelease:
    """One thing that leaves a site, charged exactly once. `event_json` is its mechanism, `steps` how many times it draws noise."""

    site: Site
    key: ChargeKey
    event_json: str
    steps: int
    book: Ledger
    outbox: Outbox

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes of this site away from open to close: two must never make one release under one charge."""
        return locked(self.site.round_lock)

    def open(self) -> bytes | None:
        """Charge it, durably, before it is made. Returns the stored bytes if it was released before.

        Raises RefusedError ROUND_CONFLICT, or ROUND_LOST when it was released and the bytes are missing or damaged.
        """
        if self.book.reserve(self.key, self.event_json, self.steps) is not Standing.RESEND:
            return None
        try:
            stored = self.outbox.load(self.key)
        except StorageError as error:
            raise self.lost(f"the stored reply of round {self.key.round} is damaged ({error})") from error
        if stored is None:
            raise self.lost(f"round {self.key.round} was released and is not in the outbox any more")
        if hashlib.sha256(stored).hexdigest() != self._released_sha256():
            raise self.lost(f"what is stored for round {self.key.round} is not what was released")
        return stored

    def close(self, *reply: bytes | memoryview) -> None:
        """Make the reply durable and mark it as leaving; replies that are surely not asked for again are deleted."""
        self.book.releasing(self.key, self.outbox.store(self.key, *reply))
        self.outbox.discard_before(self.key.study_id, self.key.run_id, self.key.round - KEPT_REPLIES + 1)

    def abandon(self) -> None:
        """Take the charge back. Only for the caller who has surely computed no gradient since `open`; a retry stays charged."""
        with suppress(RefusedError):
            self.book.settle_to_zero(self.key)

    def lost(self, reason: str) -> RefusedError:
        """The refusal for a release that left once and cannot be sent again."""
        return RefusedError(RefusalCode.ROUND_LOST, reason)

    def _released_sha256(self) -> str | None:
        return next((charge.reply_sha256 for charge in self.book.charges() if charge.key.slot == self.key.slot), None)


@dataclass(frozen=True)
class ChargedRound:
    """One training round of one study at one site. `plan` is None without privacy."""

    site: Site
    study: Study
    instruction: Instruction
    plan: PrivacyPlan | None
    book: Ledger
    outbox: Outbox
    account: str

    @cached_property
    def release(self) -> ChargedRelease:
        """What is charged; the account is the patients, not the cohort's name."""
        instruction = self.instruction
        key = ChargeKey(self.account, self.study.id, instruction.run_id, instruction.round, instruction.sha256)
        return ChargedRelease(self.site, key, self._event_json(), self.study.training.local_steps, self.book, self.outbox)

    def lock(self) -> AbstractContextManager[None]:
        """See `ChargedRelease.lock`."""
        return self.release.lock()

    @property
    def is_released(self) -> bool:
        """Whether an update has left for this round of this run, or may have."""
        slot, left = self.release.key.slot, (State.RELEASING, State.SENT)
        return any(charge.key.slot == slot and charge.state in left for charge in self.book.charges())

    def open(self, also: Sequence[DpEvent] = ()) -> Update | None:
        """Charge the round before it trains. Returns the stored update if it was released before, whatever the budget says since.

        `also` is what the same run will charge to the same patients besides. Raises RefusedError: ROUND_CONFLICT, ROUND_LOST,
        BUDGET_EXHAUSTED.
        """
        self._check_round_number()
        if self.plan is not None and isinstance(self.study.privacy, PatientPrivacy) and not self.is_released:
            planned = poisson_gaussian(self.plan.sampling_rate, self.plan.accounted_noise_multiplier, self.plan.steps)
            privacy = self.study.privacy
            check_budget(self.site, self.book, self.release.key, [planned], also, epsilon=privacy.epsilon, delta=privacy.delta)
        stored = self.release.open()
        if stored is None:
            return None
        return Update(self.instruction.run_id, self.instruction.round, self.site.name, self._delta(stored))

    def close(self, update: Update) -> None:
        """Make the update durable and mark it as leaving."""
        self.release.close(*tensor_parts(update.delta))

    def abandon(self) -> None:
        """See `ChargedRelease.abandon`."""
        self.release.abandon()

    def _delta(self, stored: bytes) -> dict[str, FloatArray]:
        try:
            return dict(load(stored))
        except SafetensorError as error:
            raise self.release.lost(f"the stored reply of round {self.instruction.round} is damaged ({error})") from error

    def _event_json(self) -> str:
        """What the round's steps are to the accountant."""
        if self.plan is None:
            return UNPROTECTED_JSON
        steps = self.study.training.local_steps
        return event_to_json(poisson_gaussian(self.plan.sampling_rate, self.plan.accounted_noise_multiplier, steps))

    def _check_round_number(self) -> None:
        if not 1 <= self.instruction.round <= self.study.federation.rounds:
            raise RefusedError(
                RefusalCode.BUDGET_EXHAUSTED, f"round {self.instruction.round} is not among the {self.study.federation.rounds} of the study"
            )


def check_budget(
    site: Site,
    book: Ledger,
    key: ChargeKey,
    planned: Sequence[DpEvent],
    also: Sequence[DpEvent] = (),
    *,
    epsilon: float,
    delta: float,
) -> None:
    """May this run charge `planned` (all that it will ever charge) to the account and line of `key`?

    `planned` alone costs at most `epsilon` at the study's `delta`; `also` is what the run charges besides where two lines count as one.
    The whole history of that account and line composed with it and with what other studies were promised (`client.ledger.earmarks`), by
    PLD at the account's δ, must not exceed the site's cap, or `epsilon` where the site has none. RDP may say yes early and never refuses.
    The share of δ that each run's noise sampler may need is taken out again for each.

    Raises RefusedError BUDGET_EXHAUSTED; STUDY_NOT_APPROVED for a δ above the account's.
    """
    if delta > book.delta(key.account):
        raise RefusedError(
            RefusalCode.STUDY_NOT_APPROVED, f"the study's δ {delta:g} is above {book.delta(key.account):g}, that of the account"
        )
    cap = epsilon if site.settings.epsilon_cap is None else site.settings.epsilon_cap
    earlier = book.spent_outside(key)
    protected = [event for event in earlier if not is_unprotected(event)]
    if len(protected) < len(earlier) and not site.settings.train_after_unprotected.strip():
        raise RefusedError(
            RefusalCode.BUDGET_EXHAUSTED,
            f"something left without protection before ({key.line} line), so these patients are not protected any more; "
            "if private studies shall go on all the same, say why in train_after_unprotected of site.json",
        )
    promised = [promise for promise in book.promises(key.account, key.line) if promise.earmark.study_id != key.study_id]
    if protected or also or promised or epsilon > cap:
        whole = [event_to_json(event) for event in [*protected, *planned, *also]] + [promise.event_json for promise in promised]
        runs = _runs_of(book, key) + sum(promise.new_runs for promise in promised)
        check_epsilon(whole, usable_delta(book.delta(key.account), runs), cap)


def check_epsilon(whole: Sequence[str], delta: float, cap: float) -> float:
    """ε of a whole history (canonical events), at most `cap` (more precise than the Rényi bound only where that decides).

    Raises RefusedError BUDGET_EXHAUSTED.
    """
    epsilon = composed_epsilon(tuple(sorted(whole)), delta, cap) if delta > 0 else math.inf
    if epsilon > cap:
        raise RefusedError(
            RefusalCode.BUDGET_EXHAUSTED,
            f"earlier runs and this one together would spend ε={epsilon:.3f}, with what other studies were promised; allowed are {cap:g}",
        )
    return epsilon


@lru_cache(maxsize=256)
def composed_epsilon(whole: tuple[str, ...], delta: float, enough: float) -> float:
    """ε of a whole history: by RDP if that is at most `enough`, else by PLD. Sites with equal histories share one computation."""
    events = [event_from_json(event) for event in whole]
    early = epsilon_rdp(events, delta)
    return early if early <= enough else epsilon_pld(events, delta)


def usable_delta(delta: float, runs: int) -> float:
    """δ of an account without what the noise samplers of all its runs may need."""
    return delta * (1 - LARGEST_TAIL_SHARE * runs)


def _runs_of(book: Ledger, key: ChargeKey) -> int:
    """How many runs have charged the account and line of `key`, or will with this one."""
    return len({(charge.key.study_id, charge.key.run_id) for charge in book.history(key.account, key.line)} | {(key.study_id, key.run_id)})
