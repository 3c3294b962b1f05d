# SPDX-License-Identifier: Apache-2.0
"""What a site may say about its held-out patients: one histogram of scores with noise, charged once, made once.

    check()     before training: the held-out line can pay for all measurements of this run
    reserve()   they are charged, durably, with the first round; a measurement is then never refused for its cost
    take()      the histogram of one model: counted, noised, into the outbox, `releasing` durable; asked again, the stored bytes

A charge names its round, not the message: it is made before the final model exists. The message's digest is stored with the histogram,
so a second model under the same charge is refused. Nothing here depends on how many patients there are, or of which labels: an empty
held-out set is a histogram of noise.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from client.charging import ChargedRelease, check_budget
from client.ledger.book import Ledger
from client.scores import HeldOutPatients
from client.site import Site
from common.errors import RefusedError, WardroundError
from common.evaluation_plan import EvaluationPlan, evaluation_plan
from common.privacy.accountant import event_to_json
from common.privacy.charge_book import Line
from common.privacy.charges import ChargeKey, Outbox, State
from common.privacy.discrete_laplace import discrete_laplace_noise
from common.privacy.generator import SystemGenerator
from common.protocol import CountArray, Instruction, RefusalCode
from common.study import PatientPrivacy, Study

if TYPE_CHECKING:
    from dp_accounting import DpEvent

EdgeArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Measurement:
    """The private evaluation of one run at one site, seen from one instruction of it."""

    site: Site
    study: Study
    privacy: PatientPrivacy
    plan: EvaluationPlan
    instruction: Instruction
    book: Ledger
    account: str

    @property
    def is_asked(self) -> bool:
        """Whether the study plans to measure the model that this instruction brings."""
        return not self.instruction.train and self.instruction.round in self.plan.rounds

    def lock(self) -> AbstractContextManager[None]:
        """See `ChargedRelease.lock`."""
        return self._release(self.instruction.round).lock()

    def check(self) -> None:
        """Raises RefusedError BUDGET_EXHAUSTED when the held-out patients cannot pay for this run's measurements."""
        if self._uncharged():
            keys = [self._release(number).key for number in self.plan.rounds]
            planned = [self.plan.event()] * len(keys)
            check_budget(self.site, self.book, keys[0], planned, epsilon=self.plan.epsilon, delta=self.privacy.delta)

    def planned(self) -> list[DpEvent]:
        """What this run will still charge to the held-out patients."""
        return [self.plan.event()] * len(self._uncharged())

    def reserve(self) -> None:
        """Charge all measurements of this run; those that are charged already, also by a recovery, stay as they are."""
        for release in self._uncharged():
            self.book.reserve(release.key, release.event_json, release.steps)

    def _uncharged(self) -> list[ChargedRelease]:
        charged = {charge.key.slot for charge in self.book.history(self.account, Line.HELD_OUT) if charge.state is not State.SETTLED}
        return [release for number in self.plan.rounds if (release := self._release(number)).key.slot not in charged]

    def take(self, patients: HeldOutPatients, edges: EdgeArray) -> CountArray:
        """The histogram of this instruction's model, int64 [questions, 2, bins], or the one that was released for this round before.

        Call it under `lock`, after `check`. Raises RefusedError: ROUND_CONFLICT for another model than before, ROUND_LOST, and
        TRAINING_FAILED for every cause of our own.
        """
        release = self._release(self.instruction.round)
        stored = release.open()
        if stored is not None:
            return self._unpacked(stored, release)
        try:
            noise = discrete_laplace_noise(self.plan.shape, self.plan.noise_parameter, SystemGenerator())
            counts = count_patients(patients, edges) + noise
            release.close(save({"counts": counts, "message": self._message_digest}))
        except WardroundError as error:
            raise RefusedError(RefusalCode.TRAINING_FAILED, str(error)) from error
        return counts

    @property
    def _message_digest(self) -> npt.NDArray[np.uint8]:
        return np.frombuffer(bytes.fromhex(self.instruction.sha256), dtype=np.uint8)

    def _release(self, round_number: int) -> ChargedRelease:
        """The charge of the measurement after a round."""
        run_id = self.instruction.run_id
        name = hashlib.sha256(json.dumps(["evaluation", self.study.id, run_id, round_number]).encode()).hexdigest()
        key = ChargeKey(self.account, self.study.id, run_id, round_number, name, Line.HELD_OUT)
        return ChargedRelease(self.site, key, event_to_json(self.plan.event()), self.plan.questions, self.book, Outbox(self.site.outbox))

    def _unpacked(self, stored: bytes, release: ChargedRelease) -> CountArray:
        try:
            parts = load(stored)
            counts, message = parts["counts"], parts["message"]
        except (SafetensorError, KeyError) as error:
            raise release.lost(f"the stored histogram of round {self.instruction.round} is damaged ({error})") from error
        if not np.array_equal(message, self._message_digest):
            raise RefusedError(RefusalCode.ROUND_CONFLICT, f"another model was measured for round {self.instruction.round} before")
        return counts


def measurement(site: Site, study: Study, instruction: Instruction, book: Ledger, account: str) -> Measurement | None:
    """The private evaluation that an instruction belongs to; None when its study has none."""
    plan = evaluation_plan(study)
    if plan is None or not isinstance(study.privacy, PatientPrivacy):
        return None
    return Measurement(site, study, study.privacy, plan, instruction, book, account)


def count_patients(patients: HeldOutPatients, edges: EdgeArray) -> CountArray:
    """Exact counts int64 [questions, 2, bins] for `edges` [questions, bins - 1]: each patient once for each question.

    A score on an edge belongs to the bin above; a score that is not a number to the last bin.
    """
    questions, bins = edges.shape[0], edges.shape[1] + 1
    counts = np.zeros((questions, 2, bins), dtype=np.int64)
    for question in range(questions):
        cells = np.searchsorted(edges[question], patients.scores[:, question], side="right")
        np.add.at(counts[question], (patients.labels[:, question].astype(np.int64), cells), 1)
    return counts
