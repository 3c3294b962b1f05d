# SPDX-License-Identifier: Apache-2.0
"""From gradients of rows to one integer sum of clipped patients' gradients.

    rows --add up per patient--> patients --clip to C, round to the grid--> integers --sum, exactly--> int64

Every patient is clipped over all parameters together and rounded to the grid before the sum. So the sum does not depend on the order
of patients or on how they were cut into micro-batches, and one patient moves it by at most `grid.relative_sensitivity` * C.
A patient with a gradient that is not finite counts as zero: their clipping factor would be NaN and pass everything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.errors import InputError
from common.privacy.grid import grid_step
from common.privacy.step import MicroBatch

BLOCK = 128
MANTISSA_BITS = {torch.float32: 24, torch.float64: 53}


@dataclass(frozen=True)
class RowGroups:
    """Which row belongs to which of `patient_count` patients. `index` int64 [R] is `patient_count` for padding.

    `views` is K if the rows are K of patient 0, K of patient 1, …, then padding; else None.
    """

    index: Tensor
    patient_count: int
    views: int | None

    @classmethod
    def of(cls, batch: MicroBatch) -> RowGroups:
        """The groups of a micro-batch, its shapes checked; `values_fit` checks the rest. Raises InputError, all problems at once."""
        problems = list(_problems(batch))
        if problems:
            raise InputError(problems)
        inside = (batch.weight > 0) & (batch.patient >= 0) & (batch.patient < batch.patient_count)
        index = torch.where(inside, batch.patient, batch.patient_count)
        return cls(index, batch.patient_count, batch.views or _views_of(index, batch.patient_count))

    @classmethod
    def one_row_each(cls, patients: int, device: torch.device) -> RowGroups:
        """As many rows as patients."""
        return cls(torch.arange(patients, device=device), patients, 1)

    @property
    def slots(self) -> int | None:
        """Patients and padding in units of K rows; None without order."""
        return None if self.views is None else len(self.index) // self.views

    def add_up(self, samples: Tensor) -> Tensor:
        """Sum of each patient's rows: [R, ...] to [G, n]; one row a patient shares memory with `samples`."""
        flat = samples.reshape(len(samples), -1)
        if self.views == 1:
            return flat[: self.patient_count]
        if self.slots is not None:
            return flat.view(self.slots, -1, flat.shape[1]).sum(1)[: self.patient_count]
        sums = flat.new_zeros(self.patient_count + 1, flat.shape[1])
        return sums.index_add_(0, self.index, flat)[: self.patient_count]


def _problems(batch: MicroBatch) -> Iterator[str]:
    """What can be seen without looking at values, which on a GPU would have to be waited for."""
    rows = len(batch.inputs)
    for name, length in {"targets": len(batch.targets), "patient": len(batch.patient), "weight": len(batch.weight)}.items():
        if length != rows:
            yield f"micro-batch: {name} has {length} rows, inputs has {rows}"
    if batch.patient_count < 1 or rows < 1:
        yield f"micro-batch: {rows} rows of {batch.patient_count} patients; leave an empty micro-batch out"
    if batch.views is not None and (batch.views < 1 or rows % batch.views or batch.patient_count * batch.views > rows):
        yield f"micro-batch: {rows} rows cannot be {batch.views} views of {batch.patient_count} patients and padding"


def _views_of(index: Tensor, patient_count: int) -> int | None:
    """K, if rows that are not on a GPU are in order and without padding."""
    views, rest = divmod(len(index), patient_count)
    if rest or index.is_cuda:
        return None
    return views if torch.equal(index, torch.arange(patient_count).repeat_interleave(views)) else None


def values_fit(batch: MicroBatch) -> Tensor:
    """Whether patients, weights and the order that `views` promises are as `MicroBatch` says; one bool, still on the device."""
    real = batch.weight > 0
    fit = (batch.weight.ge(0) & batch.weight.le(1) & (batch.patient >= 0) & (batch.patient < batch.patient_count)).all()
    if batch.views is None:
        return fit
    slot = torch.arange(len(real), device=real.device) // batch.views
    expected = slot < batch.patient_count
    return fit & (real == expected).all() & ((batch.patient == slot) | ~expected).all()


MISFIT = (
    "micro-batch: patient numbers must be 0 to patient_count - 1, a row's weight 1/K or 0 for padding, and rows in the order that "
    "`views` says"
)


@dataclass(frozen=True)
class ClippedSum:
    """`sums`: int64, one flat tensor for each parameter, in grid steps. `non_finite_count`: patients that counted as zero."""

    sums: list[Tensor]
    non_finite_count: int


def clip_and_sum(samples: Sequence[Tensor], groups: RowGroups, clipping_norm: float, grid_bits: int) -> ClippedSum:
    """Clip each patient to L2 norm `clipping_norm` over all of `samples` (one [R, ...] for each parameter) and sum on the grid.

    Overwrites `samples`.
    """
    patients = [groups.add_up(sample) for sample in samples]
    norms = patient_norms(patients)
    finite = norms.isfinite()
    factors = torch.where(finite, (clipping_norm / norms).clamp(max=1.0) / grid_step(clipping_norm, grid_bits), 0.0)
    if not bool(finite.all()):
        for gradient in patients:
            gradient[~finite] = 0
    sums = [_exact_sum(gradient.mul_(factors.to(gradient.dtype).unsqueeze(1)).round_(), grid_bits) for gradient in patients]
    return ClippedSum(sums, int((~finite).sum()))


def patient_norms(patients: Sequence[Tensor]) -> Tensor:
    """Joint L2 norm of each patient over all parameters, float64 [G]; infinite or NaN where a gradient is, or where it overflows.

    Blocks of 128 numbers are squared and added in the parameters' own precision, everything above in float64: relative error below
    66 * 2^-24 for float32 in whatever order the sums are done, without a float64 copy of the gradients.
    """
    squares = torch.zeros(len(patients[0]), dtype=torch.float64, device=patients[0].device)
    for gradient in patients:
        whole = gradient.shape[1] // BLOCK * BLOCK
        blocks = torch.linalg.vector_norm(gradient[:, :whole].reshape(len(gradient), -1, BLOCK), dim=2)  # (G, whole / BLOCK)
        rest = torch.linalg.vector_norm(gradient[:, whole:], dim=1, keepdim=True)
        squares += torch.cat((blocks, rest), dim=1).double().square_().sum(1)
    return squares.sqrt_()


def _exact_sum(integers: Tensor, grid_bits: int) -> Tensor:
    """Sum of G rows of whole numbers of size at most 2^grid_bits (1 + 2^-17) + 1, int64 [n].

    So few rows are added in floating point that no partial sum needs more bits than the mantissa has: nothing is rounded.
    """
    at_once = max(1, 2 ** (MANTISSA_BITS[integers.dtype] - grid_bits) - 1)
    total = torch.zeros(integers.shape[1], dtype=torch.int64, device=integers.device)
    for start in range(0, len(integers), at_once):
        total += integers[start : start + at_once].sum(0).to(torch.int64)
    return total
