# SPDX-License-Identifier: Apache-2.0
"""From the uses of a backward pass to the sum of clipped patients, and how large its float error can be.

Gradients of patients are added in float32 in blocks of `BLOCK` patients and in double precision from there: an error of at most
`BLOCK` * 2^-24 * C for each patient of a step, whatever the order of additions. For up to `MOST_IN_FLOAT` patients that is 2^-10 * C;
further patients of a step are rounded to the grid one by one and added as integers, without any error. Sums of large layers come with
a certificate. `bounds.float_slack` is what all of it may add to the sensitivity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final, TypeVar

import torch
from torch import Tensor

from common.privacy.bookkeeping import ghost
from common.privacy.bookkeeping.bounds import BLOCK, MOST_IN_FLOAT
from common.privacy.bookkeeping.certificate import Certificate
from common.privacy.bookkeeping.gradients import bias_gradients, natural_order, patient_gradients
from common.privacy.bookkeeping.recorder import Use
from common.privacy.clipping import RowGroups, clip_and_sum, patient_norms
from common.privacy.grid import grid_step

SMALL_NUMBERS: Final = 1 << 13
PIECE: Final = 1 << 18
Key = TypeVar("Key", Tensor, tuple[Tensor, ...])


class MicroBatchSum:
    """One micro-batch on its way into a sum: per-patient gradients of most layers, what the large ones need later."""

    def __init__(self, groups: RowGroups, *, exact: bool) -> None:
        self.groups = groups
        self.exact = exact
        self.slots = groups.slots if groups.slots is not None else len(groups.index)
        self.large: list[Use] = []
        self.taps: dict[Tensor, int] = {}
        self.used: set[Tensor] = set()
        self._rows: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def take(self, use: Use, *, is_only_use: bool) -> None:
        """Count one use of a layer in. A layer that is used twice needs its gradients added before their norm, so it is never large."""
        self.used.update(use.layer.parameters(recurse=False))
        ordered = not self.exact and self.groups.slots is not None
        if ordered and is_only_use and ghost.can_be_ghost(use.layer) and ghost.is_cheaper(use, self.slots):
            self.large.append(replace(use))
            return
        for part in patient_gradients(use, self.slots):
            self._rows[part.parameter] = self._rows[part.parameter] + part.rows if part.parameter in self._rows else part.rows
            self.taps[part.parameter] = part.taps

    def of_patients(self) -> dict[Tensor, Tensor]:
        """Each parameter's gradients, [slots, n] or without order [patients, n]; hands them over."""
        rows, self._rows = self._rows, {}
        if self.groups.slots is None:
            return {parameter: self.groups.add_up(gradient) for parameter, gradient in rows.items()}
        return rows


class PatientSum:
    """The clipped sum of one step, built from any number of micro-batches."""

    def __init__(self, parameters: Sequence[Tensor], clipping_norm: float, grid_bits: int, certificate: Certificate) -> None:
        self._parameters = parameters
        self._clipping_norm = clipping_norm
        self._grid_bits = grid_bits
        self._certificate = certificate
        self.in_double = False
        self.clear()

    def clear(self) -> None:
        """Start at zero."""
        self._fine: dict[tuple[Tensor, ...], Tensor] = {}  # parameters side by side
        self._large: dict[Tensor, Tensor] = {}
        self._whole: dict[Tensor, Tensor] = {}
        self._taps: dict[Tensor, int] = {}
        self._slots_in_float = 0
        self._slots = 0
        self._non_finite: list[Tensor] = []
        self._certificate.clear()

    @property
    def non_finite_count(self) -> int:
        """Patients of this step that count as zero. On a GPU this waits for it."""
        return int(sum(int(count) for count in self._non_finite))

    def is_certified(self) -> bool:
        """Whether the sums of large layers may be used. On a GPU this waits for it."""
        return self._certificate.accepts(self._large, self._clipping_norm)

    def has_room(self, groups: RowGroups) -> bool:
        """Whether a micro-batch may still be added in floating point. Padding counts, so that one patient more moves only one other."""
        return self._slots_in_float + (groups.slots or groups.patient_count) <= MOST_IN_FLOAT

    def begin(self, groups: RowGroups, *, exact: bool = False) -> MicroBatchSum:
        """Start a micro-batch. `exact` adds it as integers, patient by patient; beyond `MOST_IN_FLOAT` patients that is always so."""
        return MicroBatchSum(groups, exact=exact or not self.has_room(groups))

    def add(self, part: MicroBatchSum) -> None:
        """Count a finished micro-batch in."""
        self._slots += part.slots
        self._taps |= part.taps
        gradients = part.of_patients()
        if part.exact:
            self._add_exactly(gradients)
        else:
            patients = part.groups.slots or part.groups.patient_count
            self._slots_in_float += patients
            self._add_in_float(gradients, part.large, patients)

    def take(self) -> list[Tensor | None]:
        """The sum of each parameter, whole numbers [n] in grid steps, None where nothing was added; starts at zero again.

        int32 where no sum of so many patients can be larger, which halves the memory of a large model; else int64.
        """
        dtype = torch.int32 if (self._slots + 1) << self._grid_bits < 2**30 else torch.int64
        fine = _separated(self._fine)
        rounded: dict[Tensor, Tensor] = {}
        alone = [parameter for parameter in fine if parameter not in self._large and parameter not in self._whole]
        for together in _side_by_side(alone):
            total = self._on_grid([torch.cat([fine[parameter] for parameter in together])], dtype)
            rounded |= dict(zip(together, torch.split(total, [parameter.numel() for parameter in together]), strict=True))
        for parameter in {*fine, *self._large, *self._whole} - rounded.keys():
            rounded[parameter] = self._rounded(parameter, fine.get(parameter), dtype)
        sums = [self._ordered(parameter, rounded.get(parameter)) for parameter in self._parameters]
        self.clear()
        return sums

    def _add_exactly(self, gradients: dict[Tensor, Tensor]) -> None:
        patients = list(gradients.values())
        clipped = clip_and_sum(patients, RowGroups.one_row_each(len(patients[0]), patients[0].device), self._clipping_norm, self._grid_bits)
        for parameter, added in zip(gradients, clipped.sums, strict=True):
            _accumulate(self._whole, parameter, added)
        self._non_finite.append(torch.tensor(clipped.non_finite_count))

    def _add_in_float(self, gradients: dict[Tensor, Tensor], large: list[Use], patients: int) -> None:
        merged = _merge_small(gradients | _biases(large, patients))
        gradients.clear()
        squares = [ghost.factors_of(use, patients).squared_norms() for use in large]
        squares += [patient_norms([*merged.values()]).square_()] if merged else []
        norms = torch.stack(squares).sum(0).sqrt_()
        finite = norms.isfinite()
        clipping = torch.where(finite, (self._clipping_norm / norms).clamp(max=1.0), 0.0)
        self._non_finite.append((~finite).sum())
        while merged:
            together, gradient = merged.popitem()
            self._add_block_sums(together, _without(gradient, finite), clipping)
        while large:
            self._add_large(ghost.factors_of(large.pop(), patients), clipping, finite)

    def _add_block_sums(self, together: tuple[Tensor, ...], gradient: Tensor, clipping: Tensor) -> None:
        """Sums of blocks of patients in one product, their sum in double precision."""
        _accumulate(self._fine, together, _block_sums(gradient, clipping.to(gradient.dtype)).sum(0, dtype=torch.float64))

    def _add_large(self, part: ghost.Factors, clipping: Tensor, finite: Tensor) -> None:
        left, right = part.scaled(clipping, finite)
        self._taps[part.weight] = part.taps
        if self.in_double:  # exact to 2^-53: nothing to certify
            _accumulate(self._large, part.weight, left.double().t() @ right.double())
            return
        self._certificate.add(part.weight, left, right)
        if part.weight in self._large:
            self._large[part.weight].addmm_(left.t(), right)
        else:
            self._large[part.weight] = left.t() @ right

    def _rounded(self, parameter: Tensor, fine: Tensor | None, dtype: torch.dtype) -> Tensor:
        """All parts of one sum on the grid."""
        parts = [part.view(-1) for part in (fine, self._large.pop(parameter, None)) if part is not None]
        whole = self._whole.pop(parameter, None)
        if not parts and whole is not None:
            return whole
        total = self._on_grid(parts, dtype)
        return total if whole is None else whole + total

    def _on_grid(self, parts: Sequence[Tensor], dtype: torch.dtype) -> Tensor:
        """The sum of float parts [n] in whole grid steps, a piece at a time, because double precision takes room."""
        step = grid_step(self._clipping_norm, self._grid_bits)
        total = torch.empty(len(parts[0]), dtype=dtype, device=parts[0].device)
        for first in range(0, len(total), PIECE):
            pieces = [part[first : first + PIECE].double() for part in parts]
            total[first : first + PIECE] = (pieces[0] if len(pieces) == 1 else torch.stack(pieces).sum(0)).div(step).round_()
        return total

    def _ordered(self, parameter: Tensor, total: Tensor | None) -> Tensor | None:
        """A sum in the parameter's own order."""
        return None if total is None else natural_order(parameter, total, self._taps.get(parameter, 1))


def _separated(sums: dict[tuple[Tensor, ...], Tensor]) -> dict[Tensor, Tensor]:
    """The sum of each parameter by itself."""
    found: dict[Tensor, Tensor] = {}
    for together, total in sums.items():
        for parameter, part in zip(together, torch.split(total, [parameter.numel() for parameter in together]), strict=True):
            _accumulate(found, parameter, part)
    return found


def _side_by_side(parameters: Sequence[Tensor]) -> list[tuple[Tensor, ...]]:
    """Large parameters by themselves, all small ones together."""
    small = tuple(parameter for parameter in parameters if parameter.numel() < SMALL_NUMBERS)
    return [(parameter,) for parameter in parameters if parameter.numel() >= SMALL_NUMBERS] + ([small] if small else [])


def _accumulate(sums: dict[Key, Tensor], key: Key, added: Tensor) -> None:
    if key in sums:
        sums[key].add_(added)
    else:
        sums[key] = added.clone()


def _biases(large: Sequence[Use], slots: int) -> dict[Tensor, Tensor]:
    """The biases of large layers are small: gradients [slots, O]."""
    found = (part for use in large for part in bias_gradients(use, slots))
    return {part.parameter: part.rows for part in found}


def _merge_small(gradients: dict[Tensor, Tensor]) -> dict[tuple[Tensor, ...], Tensor]:
    """Small parameters side by side in one matrix: one product instead of many."""
    groups = _side_by_side(list(gradients))
    return {group: torch.cat([gradients[one] for one in group], dim=1) if len(group) > 1 else gradients[group[0]] for group in groups}


def _without(gradient: Tensor, finite: Tensor) -> Tensor:
    """Zero the patients that are not finite; on the CPU only when there are any."""
    if gradient.is_cuda or not bool(finite.all()):
        return gradient.masked_fill_(~finite.unsqueeze(1), 0)
    return gradient


def _block_sums(gradient: Tensor, clipping: Tensor) -> Tensor:
    """Weighted sums of each `BLOCK` patients: [slots, n] to [blocks, n]."""
    whole = len(gradient) // BLOCK * BLOCK
    sums = torch.bmm(clipping[:whole].view(-1, 1, BLOCK), gradient[:whole].view(-1, BLOCK, gradient.shape[1])).squeeze(1)
    return sums if whole == len(gradient) else torch.cat((sums, torch.mv(gradient[whole:].t(), clipping[whole:]).unsqueeze(0)))
