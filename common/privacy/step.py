# SPDX-License-Identifier: Apache-2.0
"""The one call through which every private optimiser step goes.

A caller decides which patients are in the step (Poisson sampling) and cuts their rows into micro-batches. The engine behind
`PrivateStepper` decides how gradients are formed: per patient, clipped to norm C, summed, noised, divided by a public constant.

Guarantee and its assumptions: one call is the Poisson-sampled Gaussian mechanism at patient level, neighbouring relation add or remove
one patient, provided that (1) each patient was drawn independently with the public rate, (2) all rows of a patient are in one
micro-batch, (3) the divisor and the noise were computed from public numbers only. The engine cannot check (1) and (3).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class MicroBatch:
    """Rows of some patients of one step.

    `inputs` float32 [R, ...]; `targets` [R]; `patient` int64 [R] numbers the patients of this micro-batch 0…G-1 (not ids);
    `weight` float32 [R] is 1/K for each of a patient's K rows and 0 for padding, so a patient's gradient is the mean of their views.
    `views` is K where the first rows are K of patient 0, K of patient 1, … and only padding follows: engines need not look for it then.
    """

    inputs: Tensor
    targets: Tensor
    patient: Tensor
    weight: Tensor
    patient_count: int
    views: int | None = None

    def padded(self, rows: int) -> MicroBatch:
        """The same micro-batch with rows of zeros and weight 0 behind, `rows` in all."""
        missing = rows - len(self.inputs)
        if missing <= 0:
            return self
        inputs, targets, patient, weight = (_with_zeros(v, missing) for v in (self.inputs, self.targets, self.patient, self.weight))
        return replace(self, inputs=inputs, targets=targets, patient=patient, weight=weight)


def _with_zeros(values: Tensor, rows: int) -> Tensor:
    return torch.cat((values, values.new_zeros(rows, *values.shape[1:])))


@dataclass(frozen=True)
class StepReport:
    """What a step tells its own site. Private: nothing of it may leave (it is not noised)."""

    loss_sum: float
    patient_count: int
    non_finite_count: int


class PrivateStepper(Protocol):
    """One engine bound to one model and one optimiser."""

    def private_step(self, microbatches: Iterable[MicroBatch]) -> StepReport:
        """Take one step. No micro-batch at all is a step of noise only, and must be charged like any other."""
        ...


class ClosableStepper(PrivateStepper, Protocol):
    """A stepper that can give its model back."""

    def close(self) -> None:
        """Remove everything that was attached to the model."""
        ...
