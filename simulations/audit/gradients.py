# SPDX-License-Identifier: Apache-2.0
"""What the attacker computes for each canary: its gradient at the model that the server sent, clipped as the site clips it.

For a model of any layers the gradients are dense rows, one for each canary and each real patient (the attacker of differential privacy
knows everybody's images). For a linear head on stored features they are known in closed form: residual times feature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from client.rows import targets_of
from client.trainer import Trainer, TrainingData
from common.data.cohort import IntArray
from common.models.base import MedicalModel
from common.protocol import Arrays
from simulations.audit.canaries import SparseRows

FloatArray = npt.NDArray[np.float32]
ROWS_AT_ONCE: Final = 64
SPAN_SHARE: Final = 4
MOST_DIRECTIONS: Final = 1500


@dataclass(frozen=True)
class Known:
    """What the attacker knows: the mixed data set with every canary, in or out, and how the site trains.

    `model` is the attacker's own copy of the network, without the site's engine on it.
    """

    trainer: Trainer
    model: MedicalModel
    data: TrainingData
    patients: list[IntArray]
    clipping_norm: float


def flat(arrays: Arrays) -> FloatArray:
    """All tensors as one row, in the order of `arrays`."""
    return np.concatenate([np.asarray(value, dtype=np.float32).reshape(-1) for value in arrays.values()])


def dense_gradients(known: Known, model: Arrays) -> FloatArray:
    """Clipped gradient of each of `known.patients` at `model`, in units of C: float32 [patients, parameters]."""
    parts = [_patient_gradients(known, model, part) for part in _portions(known.patients)]
    gradients = np.concatenate(parts)
    norms = np.linalg.norm(gradients, axis=1, keepdims=True)
    gradients /= np.maximum(norms, known.clipping_norm)
    return gradients


def _portions(patients: list[IntArray]) -> Iterator[list[IntArray]]:
    """Patients in portions of about `ROWS_AT_ONCE` rows."""
    portion: list[IntArray] = []
    for rows in patients:
        portion.append(rows)
        if sum(map(len, portion)) >= ROWS_AT_ONCE:
            yield portion
            portion = []
    if portion:
        yield portion


def _patient_gradients(known: Known, model: Arrays, patients: list[IntArray]) -> FloatArray:
    """Mean gradient over all rows of each patient, not clipped yet, [G, P]."""
    rows = np.concatenate(patients)
    owner = torch.repeat_interleave(torch.arange(len(patients)), torch.tensor([len(part) for part in patients]))
    each = row_gradients(known, model, rows)
    sums = torch.zeros(len(patients), each.shape[1]).index_add_(0, owner, each)
    return (sums / torch.bincount(owner)[:, None]).numpy()


def row_gradients(known: Known, model: Arrays, rows: IntArray) -> Tensor:
    """Gradient of the loss of each row, float32 [R, parameters], on the CPU."""
    trainer, device = known.trainer, known.trainer.device
    weights = {name: torch.tensor(value, device=device) for name, value in model.items()}
    inputs = known.data.rows.inputs(rows, None)
    targets = targets_of(known.data.dataset, rows, trainer.study.task, device)

    def loss(parameters: Mapping[str, Tensor], row: Tensor, target: Tensor) -> Tensor:
        logits = functional_call(known.model, dict(parameters), (row[None],))
        return trainer.row_loss(logits, target[None])[0]

    each = vmap(grad(loss), in_dims=(None, 0, 0))(weights, inputs, targets)
    return torch.cat([each[name].flatten(1) for name in model], dim=1).detach().cpu()


@dataclass(frozen=True)
class HeadGradients:
    """Clipped gradients of canaries on a linear head, in units of C: `residuals` [m, K] times the canary's features, bias left out."""

    residuals: FloatArray
    rows: SparseRows

    def products(self, update: FloatArray, squares: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Inner product of each canary's gradient with `update` [K, F], and its squared length; `squares` [m] are those of its features."""
        along = (update[:, self.rows.places] * self.rows.values).sum(2).T  # [m, K]
        return (along * self.residuals).sum(1), (self.residuals**2).sum(1) * squares


@dataclass(frozen=True)
class Subspace:
    """Where the real patients' gradients on a linear head lie, whatever the model: the span of their features, `basis` [F, r]."""

    basis: FloatArray

    @classmethod
    def of(cls, data: TrainingData) -> Subspace:
        """The span of all rows of `data`, or its main `1/SPAN_SHARE` of all directions where there are very many rows."""
        rows = data.rows.inputs(data.flat_rows, None).cpu()
        most = min(rows.shape[1] // SPAN_SHARE, MOST_DIRECTIONS)
        if len(rows) <= most:
            return cls(torch.linalg.qr(rows.T)[0].numpy())
        return cls(torch.svd_lowrank(rows, q=most)[2].numpy())

    def removed_from(self, update: FloatArray) -> FloatArray:
        """What of `update` [K, F] lies outside."""
        return np.asarray(update - (update @ self.basis) @ self.basis.T, dtype=np.float32)

    def rest_of(self, rows: SparseRows) -> FloatArray:
        """Squared length of each row outside, float32 [m]."""
        rest: FloatArray = np.maximum((rows.values**2).sum(1) - (_inside(rows, self.basis) ** 2).sum(1), 0.0)
        return rest


def _inside(rows: SparseRows, basis: FloatArray) -> FloatArray:
    """Coordinates of each row in the basis, [m, r], without a copy of the basis for each row."""
    total = np.zeros((len(rows.values), basis.shape[1]), dtype=np.float32)
    for place in range(rows.values.shape[1]):
        total += rows.values[:, place, None] * basis[rows.places[:, place]]
    return total


def head_gradients(known: Known, model: Arrays, canary_rows: IntArray, rows: SparseRows) -> HeadGradients:
    """The canaries' gradients at `model`, whose only tensors are the head's weight [K, F] and bias [K]."""
    weight, bias = model.values()
    logits = (weight[:, rows.places] * rows.values).sum(2).T + bias  # [m, K]
    free = torch.from_numpy(np.asarray(logits, dtype=np.float32)).requires_grad_()
    targets = targets_of(known.data.dataset, canary_rows, known.trainer.study.task, torch.device("cpu"))
    losses = known.trainer.row_loss(free.squeeze(1) if free.shape[1] == 1 else free, targets)
    residuals: FloatArray = torch.autograd.grad(losses.sum(), free)[0].numpy()
    norms = np.linalg.norm(residuals, axis=1) * np.sqrt((rows.values**2).sum(1) + 1)
    return HeadGradients(residuals / np.maximum(norms, known.clipping_norm)[:, None], rows)
