# SPDX-License-Identifier: Apache-2.0
"""A survey at a site: tables over all patients, with noise, charged before they are made, made once.

    check()    the account can pay, within the cap of all studies and within the small budget of surveys (`limits.survey_epsilon`)
    take()     charged on both lines, durably; counted, noised, into the outbox, `releasing` durable; asked again, the stored bytes

All patients pay, those who train and those who are held out, each once. In an account whose lines count as one (the data set brings its own
split) one charge is both. Nothing here depends on how many patients there are; a site that is too small answers like any other.
"""

from __future__ import annotations

import hashlib
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

from safetensors import SafetensorError
from safetensors.numpy import load, save

from client.bench import Bench
from client.charging import ChargedRelease, check_budget
from client.ledger.book import Ledger
from client.site import Site
from client.survey_budget import check_survey_epsilon, survey_lines
from client.survey_tables import CountArray, exact_tables
from common.data.cohort import Cohort
from common.errors import ProtocolError, RefusedError, WardroundError
from common.privacy.accountant import event_to_json
from common.privacy.charges import ChargeKey, Outbox, State
from common.privacy.generator import SystemGenerator
from common.protocol import Instruction, RefusalCode, Surveyed
from common.study import PatientPrivacy, Study
from common.survey_plan import SURVEY_ROUND, SurveyPlan, survey_plan


@dataclass(frozen=True)
class ChargedSurvey:
    """One survey at one site, as one instruction asks for it. `participants`: who is counted, everybody but those who are excluded."""

    site: Site
    study: Study
    privacy: PatientPrivacy
    plan: SurveyPlan
    instruction: Instruction
    book: Ledger
    account: str
    participants: Cohort

    @cached_property
    def releases(self) -> tuple[ChargedRelease, ...]:
        """One for each line that pays; the reply is stored under the first."""
        asked, event = self.instruction, event_to_json(self.plan.event())
        keys = [
            ChargeKey(self.account, self.study.id, asked.run_id, asked.round, asked.sha256, line)
            for line in survey_lines(joint=self.site.settings.joint)
        ]
        return tuple(ChargedRelease(self.site, key, event, len(self.plan.tables), self.book, Outbox(self.site.outbox)) for key in keys)

    @property
    def is_released(self) -> bool:
        """Whether the tables have left for this run, or may have."""
        slot, left = self.releases[0].key.slot, (State.RELEASING, State.SENT)
        return any(charge.key.slot == slot and charge.state in left for charge in self.book.charges())

    def lock(self) -> AbstractContextManager[None]:
        """See `ChargedRelease.lock`."""
        return self.releases[0].lock()

    def check(self) -> None:
        """Raises RefusedError BUDGET_EXHAUSTED; STUDY_NOT_APPROVED for a δ above the account's. What left before is not checked again."""
        if self.is_released:
            return
        for release in self.releases:
            check_budget(self.site, self.book, release.key, [self.plan.event()], epsilon=self.plan.survey.epsilon, delta=self.privacy.delta)
            self._check_survey_budget(release)

    def take(self) -> dict[str, CountArray]:
        """The tables with noise, or those that were released for this run before. Call it under `lock`, after `check`.

        Raises RefusedError: ROUND_CONFLICT for another message than before, ROUND_LOST, and TRAINING_FAILED for every cause of our own.
        """
        first, *others = self.releases
        stored = first.open()
        for other in others:
            self.book.reserve(other.key, other.event_json, other.steps)
        if stored is not None:
            self._mark_leaving(hashlib.sha256(stored).hexdigest())
            return self._unpacked(stored)
        try:
            tables = self._made()
            self._mark_leaving(first.outbox.store(first.key, save(tables)))
        except WardroundError as error:
            raise RefusedError(RefusalCode.TRAINING_FAILED, str(error)) from error
        return tables

    def _mark_leaving(self, reply_sha256: str) -> None:
        """Every line says `releasing`, the first one first: a crash in between is made good when the reply is asked for again."""
        reserved = {charge.key.slot for charge in self.book.charges() if charge.state is State.RESERVED}
        for release in self.releases:
            if release.key.slot in reserved:
                self.book.releasing(release.key, reply_sha256)

    def _made(self) -> dict[str, CountArray]:
        exact, generator = exact_tables(self.participants, self.plan), SystemGenerator()
        return {table.name: exact[table.name] + self.plan.noise_for(table, generator) for table in self.plan.tables}

    def _check_survey_budget(self, release: ChargedRelease) -> None:
        """What all surveys of this line spend together, with what others were promised."""
        limit, key = self.site.settings.survey_epsilon, release.key
        if limit is None:
            return
        others = [charge for charge in self.book.history(key.account, key.line) if charge.key.slot != key.slot]
        spent = [charge.event_json for charge in others if charge.state is not State.SETTLED]
        promised = [one.event_json for one in self.book.promises(key.account, key.line) if one.earmark.study_id != key.study_id]
        check_survey_epsilon([*spent, *promised, release.event_json], self.book.delta(key.account), limit)

    def _unpacked(self, stored: bytes) -> dict[str, CountArray]:
        try:
            return dict(load(stored))
        except SafetensorError as error:
            raise self.releases[0].lost(f"the stored tables of the survey are damaged ({error})") from error


class SurveyBench(Bench):
    """A survey, for every site of the process. No model is built."""

    def survey(self, site: Site, instruction: Instruction) -> Surveyed:
        """Check, charge, count, release; what was released before is sent again as it was. Raises RefusedError, ProtocolError."""
        plan, privacy = survey_plan(self.study), self.study.privacy
        if plan is None or not isinstance(privacy, PatientPrivacy) or instruction.train or instruction.round != SURVEY_ROUND:
            raise ProtocolError(f"the study is a survey: nothing is trained, and its only message is that of round {SURVEY_ROUND}")
        book = self._book(site)
        account, counted = book.register(site.patient_ids(), site.settings.delta), self.participants(site)
        charged = ChargedSurvey(site, self.study, privacy, plan, instruction, book, account, counted)
        with charged.lock():
            charged.check()
            return Surveyed(instruction.run_id, instruction.round, site.name, charged.take())
