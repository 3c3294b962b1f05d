# SPDX-License-Identifier: Apache-2.0
"""Training with patient-level differential privacy.

Each step draws every patient independently with the study's rate from the operating system's generator, takes K of their images at
random, and hands the rows to a `PrivateStepper`, which clips per patient, sums, adds noise and divides by the public rate times N0.
No seed reaches any of this. Micro-batches all have one size, filled up with rows that weigh nothing, so memory is bounded by the study.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from typing_extensions import override

from client.rows import AUGMENT_UNIFORMS, targets_of
from client.trainer import StepFacts, Trainer, TrainingData
from common.data.cohort import IntArray
from common.models.base import MedicalModel
from common.privacy.calibration import PrivacyPlan
from common.privacy.engines import make_stepper
from common.privacy.generator import SystemGenerator
from common.privacy.sampling import draw_views, poisson_sample
from common.privacy.step import MicroBatch
from common.study import PatientPrivacy, Study, Training


class PrivateTrainer(Trainer):
    """One Poisson-sampled Gaussian mechanism a step. Noise and divisor come from public numbers only."""

    def __init__(
        self,
        study: Study,
        model: MedicalModel,
        device: torch.device,
        *,
        privacy: PatientPrivacy,
        plan: PrivacyPlan,
        nominal_patients: int,
    ) -> None:
        super().__init__(study, model, device)
        self._views = privacy.views_per_patient
        self._slots = microbatch_patients(study.training, self._views, nominal_patients)
        self._generator = SystemGenerator()
        self._stepper = make_stepper(
            privacy.engine,
            self.model,
            self.optimiser,
            self.row_loss,
            clipping_norm=privacy.clipping_norm,
            noise_multiplier=plan.noise_multiplier,
            divisor=public_divisor(study.training, privacy, nominal_patients),
            generator=self._generator,
            after_noise=self.add_proximal_pull,
        )

    @override
    def take_step(self, data: TrainingData, round_number: int, step: int) -> StepFacts:
        """Draw patients and take one private step; no patient drawn is a step of noise."""
        drawn = poisson_sample(len(data.patients), self.study.training.sampling_rate, self._generator)
        report = self._stepper.private_step(self._microbatches(data, drawn))
        return StepFacts(report.loss_sum, report.patient_count, report.non_finite_count)

    @override
    def close(self) -> None:
        """Remove the engine's hooks from the model."""
        self._stepper.close()

    def _microbatches(self, data: TrainingData, drawn: IntArray) -> Iterator[MicroBatch]:
        for first in range(0, len(drawn), self._slots):
            yield self._microbatch(data, drawn[first : first + self._slots]).padded(self._slots * self._views)

    def _microbatch(self, data: TrainingData, patients: IntArray) -> MicroBatch:
        """All K rows of each of `patients`."""
        rows = draw_views([data.patients[patient] for patient in patients], self._views, self._generator).reshape(-1)
        return MicroBatch(
            inputs=data.rows.inputs(rows, self._uniforms(len(rows))),
            targets=targets_of(data.dataset, rows, self.study.task, self.device),
            patient=torch.arange(len(patients), device=self.device).repeat_interleave(self._views),
            weight=torch.full((len(rows),), 1.0 / self._views, device=self.device),
            patient_count=len(patients),
            views=self._views,
        )

    def _uniforms(self, count: int) -> Tensor | None:
        if not self.study.training.augmentation.is_active:
            return None
        words = self._generator.words(count * AUGMENT_UNIFORMS) >> np.uint64(40)
        return torch.from_numpy(words.astype(np.float32) * np.float32(2.0**-24)).reshape(count, AUGMENT_UNIFORMS)


def microbatch_patients(training: Training, views: int, nominal_patients: int) -> int:
    """Patients in every micro-batch, from public numbers: as many as `microbatch_rows` allows, or as a step will hardly ever draw."""
    expected = training.sampling_rate * nominal_patients
    return max(1, min(training.microbatch_rows // views, math.ceil(expected + 3 * math.sqrt(expected))))


def public_divisor(training: Training, privacy: PatientPrivacy, nominal_patients: int) -> float:
    """What the noisy sum is divided by: q N0, and also C where the learning rate counts in clipping norms (De et al. 2022, section 3)."""
    return training.sampling_rate * nominal_patients * (privacy.clipping_norm if privacy.normalise else 1.0)
