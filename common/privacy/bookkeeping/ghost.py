# SPDX-License-Identifier: Apache-2.0
"""Large layers without their per-patient gradients.

A weight's gradient for one patient is left^T right, with one row of `left` [T, O] and `right` [T, F] for each place of each view. So

- its squared norm is the sum over pairs of places of (left left^T) * (right right^T), which needs no O x F matrix (Goodfellow 2015,
  arXiv 1510.01799; Li et al. 2022, arXiv 2110.05679);
- the sum over patients with clipping factors c is one product of c * left with right.

Norms are computed in double precision: cancellation between places may lose half of the digits.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Final, cast

import torch
from torch import Tensor, nn

from common.privacy.bookkeeping.bounds import LEAST_WEIGHTS
from common.privacy.bookkeeping.gradients import LEAST_CHANNELS, operands, patches_by_place
from common.privacy.bookkeeping.recorder import Use

AT_ONCE: Final = 1 << 19  # numbers of the wider factor in double precision at once
GUARD: Final = {torch.float32: 2.0**-32, torch.float64: 2.0**-44}
"""Times |left|² |right|²: more than rounding can take from a squared norm, or add to the sum when `left` is scaled, for each precision."""


@dataclass(frozen=True)
class Factors:
    """`left` [slots, T, O] and `right` [slots, T, F] of one weight [O, F]; T counts the places of all views of a patient.

    `taps` as in `gradients.Gradients`.
    """

    weight: Tensor
    left: Tensor
    right: Tensor
    taps: int

    def squared_norms(self) -> Tensor:
        """Squared norm of each patient's gradient, float64 [slots]; never below the exact one."""
        together = max(1, AT_ONCE // max(1, self.right.shape[1] * self.right.shape[2]))
        parts = zip(torch.split(self.left, together), torch.split(self.right, together), strict=True)
        return torch.cat([_squared_norms(left.double(), right.double(), GUARD[left.dtype]) for left, right in parts])

    def scaled(self, factors: Tensor, finite: Tensor) -> tuple[Tensor, Tensor]:
        """c * left [slots * T, O] and right [slots * T, F] as matrices, without the patients that are not finite."""
        left, right = self.left * factors.to(self.left.dtype).view(-1, 1, 1), self.right
        if left.is_cuda or not bool(finite.all()):
            missing = ~finite.view(-1, 1, 1)
            left, right = left.masked_fill(missing, 0), right.masked_fill(missing, 0)
        return left.reshape(-1, left.shape[2]), right.reshape(-1, right.shape[2])


def _squared_norms(left: Tensor, right: Tensor, guard: float) -> Tensor:
    if left.shape[1] == 1:
        return left.square().sum((1, 2)) * right.square().sum((1, 2))
    between, across = torch.bmm(left, left.transpose(1, 2)), torch.bmm(right, right.transpose(1, 2))
    largest = _trace(between) * _trace(across)  # |left|² |right|²
    return between.mul_(across).sum((1, 2)).clamp_min_(0) + guard * largest


def _trace(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2).sum(1)


def can_be_ghost(layer: nn.Module) -> bool:
    """Whether a layer's weight may be summed without per-patient gradients: by its type and size, which are public."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, nn.Parameter) or not weight.requires_grad or weight.numel() < LEAST_WEIGHTS:
        return False
    return type(layer) is nn.Linear or (type(layer) is nn.Conv2d and layer.groups == 1 and layer.in_channels >= LEAST_CHANNELS)


def is_cheaper(use: Use, slots: int) -> bool:
    """Whether norms by pairs of places take fewer multiplications than gradients; they also take less memory."""
    weight = cast(Tensor, use.layer.weight)
    outputs, width = len(weight), weight[0].numel()
    return _places(use, slots) * (outputs + width) < outputs * width


def factors_of(use: Use, slots: int) -> Factors:
    """The two factors of the gradient of a Conv2d's or a Linear's weight."""
    inputs, backward = operands(use)
    if isinstance(use.layer, nn.Linear):
        left, right = backward, inputs
        return Factors(use.layer.weight, left.reshape(slots, -1, left.shape[-1]), right.reshape(slots, -1, right.shape[-1]), 1)
    layer = cast(nn.Conv2d, use.layer)
    places = _places(use, slots)
    patches = patches_by_place(inputs, layer, backward.shape[2:]).view(slots, places, -1)
    left = backward.permute(0, 2, 3, 1).reshape(slots, places, layer.out_channels)
    return Factors(layer.weight, left, patches, prod(layer.kernel_size))


def _places(use: Use, slots: int) -> int:
    """Places of all views of one patient."""
    shape = use.output_gradient.shape if use.output_gradient is not None else use.inputs.shape
    one = prod(shape[1:-1]) if isinstance(use.layer, nn.Linear) else prod(shape[2:])
    return shape[0] // slots * one
