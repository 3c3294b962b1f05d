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

from client.admission import check_approved, check_permission, check_rounds_today
from client.bench import Bench
from client.charging import ChargedRound
from client.evaluator import BinPlacer, score
from client.journal import RoundEntry, append_entry
from client.measuring import Measurement, measurement
from client.plain_trainer import PlainTrainer
from client.rows import FeatureRows, ImageRows, RowSource
from client.scores import SiteScores, by_patient
from client.site import Site, SiteFile, evaluation_path, journal_path
from client.spending_curve import epsilon_after
from client.surveying import SurveyBench
from client.trainer import LocalResult, Trainer, TrainingData
from common.data.cohort import Cohort, Split
from common.data.features import open_features
from common.errors import RefusedError, WardroundError
from common.models.registry import build_model, load_state
from common.privacy.calibration import PrivacyPlan, plan_privacy
from common.privacy.charges import Outbox
from common.protocol import CountArray, Evaluated, Instruction, RefusalCode, Surveyed, Update
from common.riders import receipt_of, with_head
from common.study import PatientPrivacy, Study

if TYPE_CHECKING:
    from client.app import Settings


class Workbench:
    """Carries out instructions for the sites of this process."""

    def __init__(self, settings: Settings) -> None:
        use_threads(settings.threads)
        self._device = choose_device(settings.device)
        limit_gpu_memory(self._device, settings.gpu_memory_fraction)
        self._sites: dict[Path, Site] = {}
        self._studies: dict[str, StudyBench | SurveyBench] = {}

    def answer(self, folder: Path, records: RecordDict) -> RecordDict:
        """Reply to one instruction for the site in `folder`, with the ledger's head. Raises RefusedError, ProtocolError, DataError."""
        instruction = Instruction.from_records(records)
        bench = self._study_bench(instruction.study)
        site = self._site(folder)
        check_permission(bench.study, site)
        check_approved(bench.study, site.settings, instruction)
        bench.check_ledger(site, receipt_of(records))
        return with_head(self._reply(bench, site, instruction).to_records(), bench.ledger_head(site))

    def _reply(self, bench: StudyBench | SurveyBench, site: Site, instruction: Instruction) -> Update | Evaluated | Surveyed:
        if isinstance(bench, SurveyBench):
            return bench.survey(site, instruction)
        if instruction.train:
            return bench.train(site, instruction)
        scores = bench.evaluate(site, instruction)
        return Evaluated(instruction.run_id, instruction.round, site.name, bench.measure(site, instruction, scores))

    def _site(self, folder: Path) -> Site:
        """The site in `folder`, opened once and again whenever its `site.json` has changed."""
        known = self._sites.get(folder)
        if known is None or known.settings != SiteFile.read(folder):
            self._sites[folder] = Site.open(folder)
        return self._sites[folder]

    def _study_bench(self, text: str) -> StudyBench | SurveyBench:
        if text not in self._studies:
            study = read_study(text)
            self._studies = {text: SurveyBench(study) if study.purpose == "survey" else StudyBench(study, self._device)}
        return self._studies[text]


class StudyBench(Bench):
    """One study's model and trainers; serves every site of the process."""

    def __init__(self, study: Study, device: torch.device) -> None:
        super().__init__(study)
        self._device = device
        self._model = build_model(study).to(device)
        self._plan = self._make_plan()
        self._trainers: dict[int, Trainer] = {}
        self._data: dict[Path, tuple[Cohort, TrainingData]] = {}
        self._bins = BinPlacer(study, device)

    def train(self, site: Site, instruction: Instruction) -> Update:
        """One round: check, charge, train, store, release. A round that was released before is sent again as it was."""
        data, trainer = self._training_data(site), self._trainer(site.nominal_patients)
        load_state(self._model, instruction.model)
        charged = ChargedRound(site, self.study, instruction, self._plan, self._book(site), Outbox(site.outbox), data.account)
        measured = measurement(site, self.study, instruction, self._book(site), data.account)
        with charged.lock():
            check_rounds_today(charged)
            earlier = self._open(charged, measured)
            return self._train_charged(charged, trainer, data) if earlier is None else earlier

    def _open(self, charged: ChargedRound, measured: Measurement | None) -> Update | None:
        """Charge the round, and with the first one the run's measurements; or the update that was released for it before."""
        if measured is None:
            return charged.open()
        if not charged.is_released:
            measured.check()
        earlier = charged.open(also=measured.planned() if charged.book.fold().accounts.is_joint(charged.account) else [])
        if earlier is not None:
            return earlier
        try:
            measured.reserve()
        except WardroundError:
            charged.abandon()
            raise
        return None

    def _train_charged(self, charged: ChargedRound, trainer: Trainer, data: TrainingData) -> Update:
        """Train a round that is charged. Raises RefusedError TRAINING_FAILED for every cause of ours: causes are not told apart outside."""
        site, instruction = charged.site, charged.instruction
        started = time.perf_counter()
        try:
            self._evaluate_incoming(charged)
            result = trainer.train(data, instruction.model, instruction.round)
            update = Update(instruction.run_id, instruction.round, site.name, result.delta)
            charged.close(update)
        except WardroundError as error:
            raise RefusedError(RefusalCode.TRAINING_FAILED, str(error)) from error
        with suppress(OSError):  # a full disk must not cost an update that is released
            append_entry(journal_path(site.home), self._journal_entry(instruction, result, time.perf_counter() - started))
        return update

    def _evaluate_incoming(self, charged: ChargedRound) -> None:
        """The evaluation that rides on a round; it comes before the first gradient, so if it fails the round may cost nothing."""
        if charged.instruction.evaluate:
            try:
                self.evaluate(charged.site, charged.instruction)
            except WardroundError:
                charged.abandon()
                raise

    def evaluate(self, site: Site, instruction: Instruction) -> SiteScores:
        """Score the incoming model on the held-out patients, into the site's own folder."""
        load_state(self._model, instruction.model)
        finished_rounds = instruction.round - 1 if instruction.train else instruction.round
        scores = score(self._model, self.participants(site), self._training_data(site).rows, self.study.task)
        scores.write(evaluation_path(site.folder, finished_rounds))
        return scores

    def measure(self, site: Site, instruction: Instruction, scores: SiteScores) -> CountArray | None:
        """The histogram with noise that the study plans for this model; None where it plans none. Charged to the held-out patients."""
        measured = measurement(site, self.study, instruction, self._book(site), self._training_data(site).account)
        if measured is None or not measured.is_asked:
            return None
        with measured.lock():
            measured.check()
            return measured.take(by_patient(scores, measured.plan.questions), self._bins.edges(self._model, measured.plan.bins))

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
        """The site's data for training, made once for each opened site, and again whenever somebody else is excluded."""
        cohort = self.participants(site)
        known = self._data.get(site.folder)
        if known is None or known[0] is not cohort:
            known = self._data[site.folder] = (cohort, self._load_training_data(site, cohort))
        return known[1]

    def _load_training_data(self, site: Site, participants: Cohort) -> TrainingData:
        """Account and checks are those of the whole cohort; only whose rows are drawn depends on who is excluded."""
        # the study chooses min_patients: never compared with the true count
        if site.nominal_patients < self.study.data.min_patients or not len(site.cohort.rows_in(Split.TRAIN)):
            raise RefusedError(
                RefusalCode.NOT_READY, f"nominal size {site.nominal_patients}, the study asks for {self.study.data.min_patients}"
            )
        patients = participants.patients_in(Split.TRAIN)
        if not patients and self._plan is None:
            raise RefusedError(RefusalCode.NOT_READY, "every training patient is excluded, and without privacy there is nothing to send")
        account = self._book(site).register(site.patient_ids(), site.settings.delta)
        return TrainingData(site.name, account, site.cohort.dataset, patients, self._row_source(site))

    def _row_source(self, site: Site) -> RowSource:
        if site.cohort.dataset.features is not None:
            return FeatureRows(site.cohort.dataset.features, self._device)
        if self._model.feature_digest is None:
            return ImageRows(site.cohort.dataset, self.study.training.augmentation, self._device)
        return FeatureRows(open_features(site.cohort.dataset, self._model, site.cache), self._device)

    def _journal_entry(self, instruction: Instruction, result: LocalResult, seconds: float) -> RoundEntry:
        return RoundEntry(
            run_id=instruction.run_id,
            round=instruction.round,
            steps=result.steps,
            loss=result.mean_loss,
            non_finite=result.non_finite,
            epsilon=self._epsilon_bound(instruction.round),
            seconds=seconds,
            time=time.time(),
            device=str(self._device),
        )

    def _epsilon_bound(self, rounds: int) -> float | None:
        """Upper bound of ε after so many rounds of one run of this study; None without privacy."""
        return None if self._plan is None else epsilon_after(self._plan, rounds * self.study.training.local_steps)


def read_study(text: str) -> Study:
    """The study in a message. Raises RefusedError STUDY_INVALID."""
    try:
        return Study.from_canonical_json(text)
    except ValidationError as error:
        raise RefusedError(RefusalCode.STUDY_INVALID, f"the study in the message is not valid ({error.error_count()} problems)") from error


def use_threads(threads: int | None) -> None:
    """Let torch use so many threads in this process; None leaves its default."""
    if threads:
        torch.set_num_threads(threads)


def choose_device(name: str) -> torch.device:
    """`auto` takes the first GPU if there is one."""
    if name == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def limit_gpu_memory(device: torch.device, fraction: float) -> None:
    """Let this process take so much of the card's memory; more fails like a full card. Does nothing without a CUDA device."""
    if device.type == "cuda" and fraction < 1:
        torch.cuda.set_per_process_memory_fraction(fraction, device)
