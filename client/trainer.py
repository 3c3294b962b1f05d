# SPDX-License-Identifier: Apache-2.0
"""One round of local training.

`Trainer.train` is the whole loop: load the global model, take the study's steps, return the change. A subclass decides one thing: how
a single step picks patients and forms the gradient (`plain_trainer`, `private_trainer`). Calling `train` twice with the same
arguments starts from the same place both times: optimiser state never outlives a round.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from client.rows import RowSource
from common.data.cohort import Dataset, IntArray
from common.models.base import MedicalModel
from common.models.registry import load_state
from common.protocol import Arrays, FloatArray
from common.study import Study, Training


@dataclass(frozen=True)
class TrainingData:
    """What one site trains on. `patients` lists each training patient's rows in `dataset`; `account` names those patients' budget."""

    site: str
    account: str
    dataset: Dataset
    patients: Sequence[IntArray]
    rows: RowSource

    @cached_property
    def counts(self) -> IntArray:
        """Images of each training patient."""
        return np.array([len(rows) for rows in self.patients], dtype=np.int64)

    @cached_property
    def flat_rows(self) -> IntArray:
        """All patients' rows, one patient after the other."""
        return np.concatenate(self.patients)

    @cached_property
    def first_row(self) -> IntArray:
        """Where each patient begins in `flat_rows`."""
        return np.cumsum(self.counts) - self.counts


@dataclass(frozen=True)
class StepFacts:
    """What one step tells its own site; private, never released."""

    loss_sum: float
    patients: int
    non_finite: int = 0


@dataclass(frozen=True)
class LocalResult:
    """The change of each tensor, and the private facts of the round."""

    delta: dict[str, FloatArray]
    mean_loss: float | None
    steps: int
    non_finite: int


class Trainer(ABC):
    """Holds model and optimiser of one study; every call of `train` may be for another site."""

    def __init__(self, study: Study, model: MedicalModel, device: torch.device) -> None:
        self.study = study
        self.device = device
        self.model = model.to(device).train()
        self.optimiser = make_optimiser(study.training, model)
        self._start: dict[str, Tensor] = {}

    def train(self, data: TrainingData, start: Arrays, round_number: int) -> LocalResult:
        """Take the local steps of `round_number` (1…) from the tensors `start`. Raises ProtocolError when they do not fit the model."""
        load_state(self.model, start)
        self._start = {name: value.clone() for name, value in self.model.trainable_state().items()}
        self.optimiser.state.clear()
        facts = []
        for step in range(self.study.training.local_steps):
            self._set_learning_rate((round_number - 1) * self.study.training.local_steps + step)
            facts.append(self.take_step(data, round_number, step))
        return self._result(facts)

    def close(self) -> None:  # noqa: B027 (most trainers attach nothing)
        """Detach everything from the model, so that another trainer can take it over."""

    @abstractmethod
    def take_step(self, data: TrainingData, round_number: int, step: int) -> StepFacts:
        """Pick patients, form the gradient, update the model."""

    def row_loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """One loss a row, [R]; rows never influence each other."""
        if self.study.task == "binary":
            return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
        return functional.cross_entropy(logits, targets, reduction="none")

    def add_proximal_pull(self) -> None:
        """FedProx (Li et al. 2020, arXiv 1812.06127, eq. 2): add mu (w - w_global) to the gradient. It depends on no patient."""
        mu = self.study.federation.proximal_mu
        if mu == 0:
            return
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - self._start[name], alpha=mu)

    def _set_learning_rate(self, step: int) -> None:
        rate = learning_rate(self.study.training, step, self.study.total_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def _result(self, facts: list[StepFacts]) -> LocalResult:
        after, before = self.model.trainable_state(), self._start
        delta = {name: torch.sub(after[name], before[name], out=before[name]).cpu().numpy() for name in before}
        self._start = {}  # it holds the differences now
        seen = sum(fact.patients for fact in facts)
        loss = sum(fact.loss_sum for fact in facts) / seen if seen else None
        return LocalResult(delta, loss, len(facts), sum(fact.non_finite for fact in facts))


def make_optimiser(training: Training, model: MedicalModel) -> torch.optim.Optimizer:
    """The study's optimiser over the trainable parameters."""
    parameters = [value for value in model.parameters() if value.requires_grad]
    if training.optimiser == "adam":
        return torch.optim.Adam(parameters, lr=training.learning_rate, weight_decay=training.weight_decay)
    return torch.optim.SGD(parameters, lr=training.learning_rate, momentum=training.momentum, weight_decay=training.weight_decay)


def learning_rate(training: Training, step: int, total_steps: int) -> float:
    """Learning rate of step 0…total-1 of the study: constant, or half a cosine down to zero."""
    if training.schedule == "constant":
        return training.learning_rate
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * step / total_steps))
