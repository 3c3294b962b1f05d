# SPDX-License-Identifier: Apache-2.0
"""The mechanism as an observer meets it: one-step rounds of the real `PrivateTrainer` on a toy model, and what each releases.

Every round starts from the same weights (all zero) with learning rate 1, which is a learning rate of zero with the gradient in sight:
the update is minus the released gradient, and every round is the same mechanism. At weight zero the gradient of a row is half its
features, so a test places each patient's pull where it likes.
"""

from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor, nn

from client.private_trainer import PrivateTrainer
from client.rows import FeatureRows, RowSource
from client.trainer import TrainingData
from common.data.cohort import Dataset, IntArray
from common.models.base import MedicalModel
from common.privacy.calibration import PrivacyPlan
from common.privacy.grid import grid_step
from common.study import PatientPrivacy, Study

ENGINES: tuple[str, ...] = get_args(PatientPrivacy.model_fields["engine"].annotation)
"""Every engine that a study may name; a new one is audited without a change here."""

CPU = torch.device("cpu")
NORM = 0.7


class Toy(MedicalModel):
    """A linear head on features, weights zero."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.head = nn.Linear(size, 1, bias=False)
        nn.init.zeros_(self.head.weight)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(features).squeeze(1)


def patients_of(images: Sequence[np.ndarray]) -> tuple[np.ndarray, list[IntArray]]:
    """Features of all rows, and each patient's rows; `images` holds one [n, size] array for each patient, twice the wanted pulls."""
    owners = np.repeat(np.arange(len(images)), [len(rows) for rows in images])
    features = np.concatenate(list(images)).astype(np.float32) if images else np.zeros((0, 1), np.float32)
    return features, [np.flatnonzero(owners == patient) for patient in range(len(images))]


class Mechanism:
    """One site with these patients. `pulls` holds, for each patient, the gradients of their images, float32 [n, size]."""

    def __init__(
        self,
        engine: str,
        pulls: Sequence[np.ndarray],
        *,
        noise: float,
        rate: float,
        nominal: int = 12,
        views: int = 1,
        microbatch_rows: int = 64,
    ) -> None:
        size = pulls[0].shape[1]
        features, patients = patients_of([2 * rows for rows in pulls])
        self.study = _study(engine, rate, views, microbatch_rows)
        self.divisor = rate * nominal
        assert isinstance(self.study.privacy, PatientPrivacy)
        plan = PrivacyPlan(noise, noise, rate, 1, 1.0, 1.0, 1e-6, NORM, grid_step(NORM), size)
        self.trainer = PrivateTrainer(self.study, Toy(size), CPU, privacy=self.study.privacy, plan=plan, nominal_patients=nominal)
        self.data = TrainingData("north", "account", _dataset(len(features)), patients, FeatureRows(features, CPU))
        self._start = {"head.weight": np.zeros((1, size), np.float32)}

    def released(self, rows: RowSource | None = None) -> np.ndarray:
        """The gradient that one round releases, float64 [size]; `rows` replaces the source of images."""
        data = self.data if rows is None else TrainingData("north", "account", self.data.dataset, self.data.patients, rows)
        return -self.trainer.train(data, self._start, 1).delta["head.weight"][0].astype(np.float64)

    def rounds(self, count: int) -> np.ndarray:
        """The sums of so many rounds, released gradient times public divisor, [count, size]."""
        return np.array([self.released() for _ in range(count)]) * self.divisor


def _study(engine: str, rate: float, views: int, microbatch_rows: int) -> Study:
    content: dict[str, Any] = {
        "name": "audit",
        "training": {"local_steps": 1, "sampling_rate": rate, "learning_rate": 1.0, "microbatch_rows": microbatch_rows},
        "privacy": {"engine": engine, "clipping_norm": NORM, "views_per_patient": views},
    }
    return Study.model_validate(content)


def _dataset(rows: int) -> Dataset:
    """Labels of `rows` images, all negative; nothing else of it is looked at."""
    numbers = np.arange(rows)
    images = np.zeros((rows, 1, 1, 1), np.uint8)
    return Dataset(images, np.zeros(rows, np.int64), numbers, tuple(map(str, numbers)), ("no", "yes"), {}, None, None, True, "0" * 64)
