# SPDX-License-Identifier: Apache-2.0
"""The order in which a round is charged, trained and released, so that every update that left has exactly one charge.

    open()    reserve, durable before the first gradient     (or: this round left already, here are its stored bytes)
    ...       training
    close()   reply into the outbox, `releasing` durable     only then may the first byte leave

One process at a time does this for a site (`lock`). Killed between open and close, nothing has left: the same round trains anew under
the same charge. Killed after close, the stored bytes are sent again. A reply that is missing from the outbox after `releasing` is never
computed again.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

from safetensors import SafetensorError
from safetensors.numpy import load, save

from client.site import Site
from common.errors import RefusedError, StorageError
from common.files import locked
from common.privacy.accountant import UNPROTECTED_JSON, epsilon_pld, event_to_json, poisson_gaussian
from common.privacy.calibration import PrivacyPlan
from common.privacy.charges import ChargeBook, ChargeKey, Outbox, Standing
from common.protocol import FloatArray, Instruction, RefusalCode, Update
from common.study import PatientPrivacy, Study

KEPT_REPLIES = 2
"""As many as the server keeps checkpoints: it may go back by one round when its newest checkpoint is damaged."""


@dataclass(frozen=True)
class ChargedRound:
    """One round of one study at one site. `plan` is None without privacy."""

    site: Site
    study: Study
    instruction: Instruction
    plan: PrivacyPlan | None
    book: ChargeBook
    outbox: Outbox
    account: str

    @cached_property
    def key(self) -> ChargeKey:
        """What the charge is for; the account is the training patients, not the cohort's name."""
        return ChargeKey(self.account, self.study.id, self.instruction.run_id, self.instruction.round, self.instruction.sha256)

    def lock(self) -> AbstractContextManager[None]:
        """Keep other processes of this site away from open to close: two must never train one round under one charge."""
        return locked(self.site.folder / "round.lock")

    def open(self) -> Update | None:
        """Charge the round before it trains. Returns the stored update if it was released before.

        Raises RefusedError: ROUND_CONFLICT, ROUND_LOST, BUDGET_EXHAUSTED.
        """
        self._check_round_number()
        self._check_budget()
        reservation = self.book.reserve(self.key, self._event_json(), self.study.training.local_steps)
        if reservation is not Standing.RESEND:
            return None
        return Update(self.instruction.run_id, self.instruction.round, self.site.name, self._stored_delta())

    def close(self, update: Update) -> None:
        """Make the update durable and mark it as leaving."""
        self.book.releasing(self.key, self.outbox.store(self.key, save(dict(update.delta))))
        self.outbox.discard_before(self.study.id, self.instruction.run_id, self.instruction.round - KEPT_REPLIES + 1)

    def _stored_delta(self) -> dict[str, FloatArray]:
        """The tensors that were released before. Raises RefusedError ROUND_LOST when they are missing or damaged."""
        try:
            stored = self.outbox.load(self.key)
            if stored is None:
                raise RefusedError(RefusalCode.ROUND_LOST, f"round {self.instruction.round} was released and is not in the outbox any more")
            if hashlib.sha256(stored).hexdigest() not in {charge.reply_sha256 for charge in self.book.charges() if charge.key == self.key}:
                raise RefusedError(RefusalCode.ROUND_LOST, f"what is stored for round {self.instruction.round} is not what was released")
            return dict(load(stored))
        except (StorageError, SafetensorError) as error:
            raise RefusedError(
                RefusalCode.ROUND_LOST, f"the stored reply of round {self.instruction.round} is damaged ({error})"
            ) from error

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

    def _check_budget(self) -> None:
        """What other runs spent on these patients counts too: the whole history composed with this run's plan, by PLD."""
        privacy = self.study.privacy
        if self.plan is None or not isinstance(privacy, PatientPrivacy):
            return
        earlier = self.book.spent_outside(self.account, self.study.id, self.instruction.run_id)
        if not earlier:
            return
        planned = poisson_gaussian(self.plan.sampling_rate, self.plan.accounted_noise_multiplier, self.plan.steps)
        epsilon = epsilon_pld([*earlier, planned], privacy.delta)
        if epsilon > privacy.epsilon:
            raise RefusedError(
                RefusalCode.BUDGET_EXHAUSTED,
                f"earlier runs and this one together would spend ε={epsilon:.3f}, allowed are {privacy.epsilon}",
            )
