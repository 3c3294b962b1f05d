# SPDX-License-Identifier: Apache-2.0
"""What a process keeps loaded between messages: opened sites, and one trainer for each study.

A cache and nothing more: every fact that matters is in the site's folder, so a process may die at any time and another goes on.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from flwr.app import RecordDict
from pydantic import ValidationError

from client.charging import ChargedRound
from client.evaluator import score
from client.journal import RoundEntry, append_entry
from client.plain_trainer import PlainTrainer
from client.rows import FeatureRows, ImageRows, RowSource
from client.site import Site, evaluation_path, journal_path
from client.trainer import LocalResult, Trainer, TrainingData
from common.data.cohort import Dataset, Split
from common.data.features import open_features
from common.errors import RefusedError, WardroundError
from common.files import cache_folder
from common.models.registry import build_model, load_state
from common.privacy.accountant import epsilon_rdp, poisson_gaussian
from common.privacy.calibration import PrivacyPlan, plan_privacy
from common.privacy.charges import ChargeBook, ChargeFile, Outbox
from common.protocol import Evaluated, Instruction, RefusalCode, Update
from common.study import PatientPrivacy, Study

if TYPE_CHECKING:
    from client.app import Settings


class Workbench:
    """Carries out instructions for the sites of this process."""

    def __init__(self, settings: Settings) -> None:
        use_threads(settings.threads)
        self._device = choose_device(settings.device)
        self._sites: dict[Path, Site] = {}
        self._studies: dict[str, StudyBench] = {}

    def answer(self, folder: Path, records: RecordDict) -> RecordDict:
        """Reply to one instruction for the site in `folder`. Raises RefusedError, ProtocolError, DataError."""
        instruction = Instruction.from_records(records)
        bench = self._study_bench(instruction.study)
        site = self._site(folder)
        check_permission(bench.study, site)
        if not instruction.train:
            bench.evaluate(site, instruction)
            return Evaluated(instruction.run_id, instruction.round, site.name).to_records()
        return bench.train(site, instruction).to_records()

    def _site(self, folder: Path) -> Site:
        if folder not in self._sites:
            self._sites[folder] = Site.open(folder)
        return self._sites[folder]

    def _study_bench(self, text: str) -> StudyBench:
        if text not in self._studies:
            self._studies = {text: StudyBench(read_study(text), self._device)}
        return self._studies[text]


class StudyBench:
    """One study's model and trainers; serves every site of the process."""

    def __init__(self, study: Study, device: torch.device) -> None:
        self.study = study
        self._device = device
        self._model = build_model(study).to(device)
        self._plan = self._make_plan()
        self._trainers: dict[int, Trainer] = {}
        self._data: dict[Path, TrainingData] = {}
        self._books: dict[Path, ChargeBook] = {}

    def train(self, site: Site, instruction: Instruction) -> Update:
        """One round: check, charge, train, store, release. A round that was released before is sent again as it was."""
        data, trainer = self._training_data(site), self._trainer(site.nominal_patients)
        load_state(self._model, instruction.model)
        charged = ChargedRound(site, self.study, instruction, self._plan, self._book(site), Outbox(site.outbox), data.account)
        with charged.lock():
            earlier = charged.open()
            return self._train_charged(charged, trainer, data) if earlier is None else earlier

    def _train_charged(self, charged: ChargedRound, trainer: Trainer, data: TrainingData) -> Update:
        """Train a round that is charged. Raises RefusedError TRAINING_FAILED for every cause of ours: causes are not told apart outside."""
        site, instruction = charged.site, charged.instruction
        started = time.perf_counter()
        try:
            if instruction.evaluate:
                self.evaluate(site, instruction)
            result = trainer.train(data, instruction.model, instruction.round)
            update = Update(instruction.run_id, instruction.round, site.name, result.delta)
            charged.close(update)
        except WardroundError as error:
            raise RefusedError(RefusalCode.TRAINING_FAILED, str(error)) from error
        with suppress(OSError):  # a full disk must not cost an update that is released
            append_entry(journal_path(site.folder), self._journal_entry(instruction, result, time.perf_counter() - started))
        return update

    def evaluate(self, site: Site, instruction: Instruction) -> None:
        """Score the incoming model on the held-out patients, into the site's own folder."""
        load_state(self._model, instruction.model)
        finished_rounds = instruction.round - 1 if instruction.train else instruction.round
        scores = score(self._model, site.cohort, self._training_data(site).rows, self.study.task)
        scores.write(evaluation_path(site.folder, finished_rounds))

    def _book(self, site: Site) -> ChargeBook:
        if site.folder not in self._books:
            self._books[site.folder] = ChargeFile(site.charges_path)
        return self._books[site.folder]

    def _trainer(self, nominal_patients: int) -> Trainer:
        """The trainer for a nominal size; one at a time, because all share one model."""
        if nominal_patients not in self._trainers:
            for trainer in self._trainers.values():
                trainer.close()
            self._trainers = {nominal_patients: self._make_trainer(nominal_patients)}
        return self._trainers[nominal_patients]

    def _make_trainer(self, nominal_patients: int) -> Trainer:
        privacy = self.study.privacy
        if self._plan is None or not isinstance(privacy, PatientPrivacy):
            return PlainTrainer(self.study, self._model, self._device)
        from client.private_trainer import PrivateTrainer

        return PrivateTrainer(
            self.study,
            self._model,
            self._device,
            privacy=privacy,
            plan=self._plan,
            nominal_patients=nominal_patients,
        )

    def _make_plan(self) -> PrivacyPlan | None:
        if not isinstance(self.study.privacy, PatientPrivacy):
            return None
        size = sum(value.numel() for value in self._model.trainable_state().values())
        return plan_privacy(self.study.privacy, self.study.training.sampling_rate, self.study.total_steps, size)

    def _training_data(self, site: Site) -> TrainingData:
        if site.folder not in self._data:
            self._data[site.folder] = self._load_training_data(site)
        return self._data[site.folder]

    def _load_training_data(self, site: Site) -> TrainingData:
        patients = site.cohort.patients_in(Split.TRAIN)
        if len(patients) < self.study.data.min_patients:
            raise RefusedError(
                RefusalCode.NOT_READY, f"{len(patients)} training patients, the study asks for {self.study.data.min_patients}"
            )
        account = site.cohort.account(Split.TRAIN)
        return TrainingData(site.name, account, site.cohort.dataset, patients, self._row_source(site.cohort.dataset))

    def _row_source(self, dataset: Dataset) -> RowSource:
        if self._model.feature_digest is None:
            return ImageRows(dataset, self.study.training.augmentation, self._device)
        return FeatureRows(open_features(dataset, self._model, cache_folder()), self._device)

    def _journal_entry(self, instruction: Instruction, result: LocalResult, seconds: float) -> RoundEntry:
        return RoundEntry(
            run_id=instruction.run_id,
            round=instruction.round,
            steps=result.steps,
            loss=result.mean_loss,
            non_finite=result.non_finite,
            epsilon=self._epsilon_bound(instruction.round),
            seconds=seconds,
            device=str(self._device),
        )

    def _epsilon_bound(self, rounds: int) -> float | None:
        """Upper bound (RDP) of ε after so many rounds of this study."""
        if self._plan is None:
            return None
        steps = rounds * self.study.training.local_steps
        return epsilon_rdp([poisson_gaussian(self._plan.sampling_rate, self._plan.accounted_noise_multiplier, steps)], self._plan.delta)


def read_study(text: str) -> Study:
    """The study in a message. Raises RefusedError STUDY_INVALID."""
    try:
        return Study.from_canonical_json(text)
    except ValidationError as error:
        raise RefusedError(RefusalCode.STUDY_INVALID, f"the study in the message is not valid ({error.error_count()} problems)") from error


def check_permission(study: Study, site: Site) -> None:
    """A study without privacy runs only where the site allows it by id. Raises RefusedError STUDY_NOT_APPROVED."""
    if not study.is_private and study.id not in site.unprotected_studies:
        raise RefusedError(RefusalCode.STUDY_NOT_APPROVED, f"study {study.id[:12]} has no privacy and is not allowed by id in site.json")


def use_threads(threads: int | None) -> None:
    """Let torch use so many threads in this process; None leaves its default."""
    if threads:
        torch.set_num_threads(threads)


def choose_device(name: str) -> torch.device:
    """`auto` takes the first GPU if there is one."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    return torch.device(name)
