# SPDX-License-Identifier: Apache-2.0
"""Training without privacy: a fixed share of the patients in each step, drawn by the study's seed, so that runs repeat exactly."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

from client.rows import AUGMENT_UNIFORMS, targets_of
from client.trainer import StepFacts, Trainer, TrainingData
from common.data.cohort import IntArray


class PlainTrainer(Trainer):
    """The mean loss over one image of each drawn patient."""

    def take_step(self, data: TrainingData, round_number: int, step: int) -> StepFacts:
        """Draw patients without replacement, one image each; gradients of micro-batches add up to the batch's mean."""
        random = step_random(self.study.seed, data.site, round_number, step)
        rows = self._draw_rows(data, random)
        uniforms = self._uniforms(len(rows), random)
        self.optimiser.zero_grad(set_to_none=True)
        loss_sum = torch.zeros((), device=self.device)
        size = self.study.training.microbatch_rows
        for first in range(0, len(rows), size):
            part = slice(first, first + size)
            loss_sum += self._backward(data, rows[part], None if uniforms is None else uniforms[part], len(rows))
        self.add_proximal_pull()
        self.optimiser.step()
        return StepFacts(float(loss_sum), len(rows))

    def _draw_rows(self, data: TrainingData, random: np.random.Generator) -> IntArray:
        count = max(1, round(self.study.training.sampling_rate * len(data.patients)))
        drawn = random.choice(len(data.patients), size=count, replace=False)
        within = (random.random(count) * data.counts[drawn]).astype(np.int64)
        rows: IntArray = data.flat_rows[data.first_row[drawn] + within]
        return rows

    def _uniforms(self, count: int, random: np.random.Generator) -> Tensor | None:
        if not self.study.training.augmentation.is_active:
            return None
        return torch.from_numpy(random.random((count, AUGMENT_UNIFORMS), dtype=np.float32))

    def _backward(self, data: TrainingData, rows: IntArray, uniforms: Tensor | None, batch_rows: int) -> Tensor:
        logits = self.model(data.rows.inputs(rows, uniforms))
        losses = self.row_loss(logits, targets_of(data.dataset, rows, self.study.task, self.device))
        (losses.sum() / batch_rows).backward()  # type: ignore[no-untyped-call]
        return losses.detach().sum()


def step_random(seed: int, site: str, round_number: int, step: int) -> np.random.Generator:
    """The generator of one step at one site: the same in every process and on every machine."""
    name = f"wardround plain step|{seed}|{site}|{round_number}|{step}"
    return np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:16], "big"))
