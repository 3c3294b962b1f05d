# SPDX-License-Identifier: Apache-2.0
"""One attacked training run: canaries in, all rounds observed, one score a canary; and what membership inference needs of the end.

The same code attacks the private run, the control and (in tests) broken mechanisms; only the plan and the trainer differ.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from client.private_trainer import PrivateTrainer
from client.trainer import Trainer, TrainingData
from common.data.cohort import IntArray
from common.models.registry import build_model, load_state
from common.protocol import Arrays
from common.study import PatientPrivacy, Study
from simulations.audit.canaries import Canaries, Mixed, SparseRows, mix
from simulations.audit.gradients import Known, Subspace, dense_gradients, flat, head_gradients
from simulations.audit.scores import Counts, log_ratios, matched, ridge
from simulations.audit.training import Observation, observed_rounds

FloatArray = npt.NDArray[np.float64]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Attacked:
    """What an attacked run gives: `included` bool [m] (the secret), `scores` [m], mean losses of members and of held-out patients."""

    included: npt.NDArray[np.bool_]
    scores: FloatArray
    member_losses: FloatArray
    held_out_losses: FloatArray

    def to_bytes(self) -> bytes:
        """All arrays as one npz."""
        buffer = io.BytesIO()
        np.savez(buffer, **{field.name: getattr(self, field.name) for field in fields(self)})
        return buffer.getvalue()

    @classmethod
    def from_bytes(cls, content: bytes) -> Attacked:
        """What `to_bytes` wrote."""
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            return cls(*(arrays[field.name] for field in fields(cls)))


@dataclass(frozen=True)
class Target:
    """The site under attack: its training data, its held-out patients' rows, and its public nominal size."""

    study: Study
    site: TrainingData
    held_out: list[IntArray]
    nominal_patients: int


def attack(target: Target, trainer: PrivateTrainer, canaries: Canaries, progress: Progress) -> Attacked:
    """Train the study at the site with `canaries` and score each of them from what the server saw."""
    study = target.study
    mixed = mix(target.site, canaries, trainer.device)
    attacker = Attacker(study, trainer, mixed, canaries, target.nominal_patients)
    total = np.zeros(len(canaries))
    average: Arrays = {}
    for seen in observed_rounds(study, trainer, mixed.data):
        total += attacker.round_scores(seen)
        average = seen.average
        progress(seen.round, study.federation.rounds)
    losses = [patient_losses(study, trainer, average, target.site, rows) for rows in (list(target.site.patients), target.held_out)]
    return Attacked(canaries.included, total, losses[0], losses[1])


class Attacker:
    """A server that knows every image, canaries included, and not who was in or drawn."""

    def __init__(self, study: Study, trainer: Trainer, mixed: Mixed, canaries: Canaries, nominal_patients: int) -> None:
        if not isinstance(study.privacy, PatientPrivacy):
            raise ValueError("the attack needs a study with a clipping norm")
        self._study = study
        self._canaries = canaries
        self._rows = mixed.canary_rows
        patients = [*self._rows[:, None], *mixed.data.patients[: mixed.own_patients]]
        self._known = Known(trainer, build_model(study).to(trainer.device), mixed.data, patients, study.privacy.clipping_norm)
        self._span: Subspace | None = None
        self._squares = np.zeros(0, dtype=np.float32)
        if isinstance(canaries.contents, SparseRows):
            self._span = Subspace.of(mixed.own)
            self._squares = self._span.rest_of(canaries.contents)
        self._unit = study.training.sampling_rate * nominal_patients / study.privacy.clipping_norm

    def round_scores(self, seen: Observation) -> FloatArray:
        """What one round says about each canary, [m]."""
        training = self._study.training
        counts = self._head_counts(seen) if isinstance(self._canaries.contents, SparseRows) else self._dense_counts(seen)
        return log_ratios(counts, training.sampling_rate, training.local_steps)

    def _gradient_sum(self, seen: Observation) -> dict[str, npt.NDArray[np.float32]]:
        """The sum of clipped gradients that the update stands for, in units of C. Exact for plain SGD."""
        return {name: -value * (self._unit / self._learning_rate(seen.round)) for name, value in seen.delta.items()}

    def _learning_rate(self, round_number: int) -> float:
        """Mean learning rate of the round's steps."""
        from client.trainer import learning_rate

        steps = self._study.training.local_steps
        first = (round_number - 1) * steps
        return float(np.mean([learning_rate(self._study.training, first + step, self._study.total_steps) for step in range(steps)]))

    def _dense_counts(self, seen: Observation) -> Counts:
        expected = self._study.training.sampling_rate * self._study.training.local_steps
        gradients = dense_gradients(self._known, seen.model)
        counts = ridge(gradients, flat(self._gradient_sum(seen)), expected / 2, expected)
        count = len(self._canaries)
        return Counts(counts.estimate[:count], counts.error[:count])

    def _head_counts(self, seen: Observation) -> Counts:
        if not isinstance(self._canaries.contents, SparseRows) or self._span is None:
            raise ValueError("images have no closed form")
        weight = self._span.removed_from(next(iter(self._gradient_sum(seen).values())))
        gradients = head_gradients(self._known, seen.model, self._rows, self._canaries.contents)
        return matched(*gradients.products(weight, self._squares))


@torch.no_grad()
def patient_losses(study: Study, trainer: Trainer, model: Arrays, data: TrainingData, patients: list[IntArray]) -> FloatArray:
    """Mean loss over each patient's images under `model`, [patients]."""
    from client.rows import targets_of

    load_state(trainer.model, model)
    losses = []
    for rows in patients:
        logits = trainer.model(data.rows.inputs(rows, None))
        losses.append(float(trainer.row_loss(logits, targets_of(data.dataset, rows, study.task, trainer.device)).mean()))
    return np.array(losses, dtype=np.float64)
