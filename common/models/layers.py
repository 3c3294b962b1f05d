# SPDX-License-Identifier: Apache-2.0
"""Layers that the stock library lacks."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from common.study import Study

WEIGHT_GAIN = 1.4
WEIGHT_EPS = 1e-6


class WSConv2d(nn.Conv2d):
    """Convolution with weight standardisation (Qiao et al. 2019, arXiv 1903.10520).

    Each output filter is centred and scaled to L2 norm `WEIGHT_GAIN` before the convolution, so the gradient of the stored weight is
    the filter gradient times the Jacobian of that map; `standardise_gradient` applies it to per-sample gradients.
    """

    def standardised_weight(self) -> Tensor:
        """The weight [O, I/groups, kH, kW] that the convolution really uses."""
        centred = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        norm: Tensor = centred.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        return centred * (WEIGHT_GAIN / (norm + WEIGHT_EPS))

    def forward(self, input: Tensor) -> Tensor:
        """Convolve [B, I, H, W] with the standardised weight."""
        output: Tensor = self._conv_forward(input, self.standardised_weight(), self.bias)
        return output

    @torch.no_grad()
    def standardise_gradient(self, gradient: Tensor) -> Tensor:
        """Chain rule from the used weight to the stored one.

        `gradient` is [..., O, I/groups, kH, kW] with any leading (sample) dimensions; the result has the same shape.
        """
        centred = self.weight - self.weight.mean(dim=(1, 2, 3), keepdim=True)
        norm = centred.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
        scale = norm + WEIGHT_EPS
        unit = centred / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        along = (gradient * unit).sum(dim=(-3, -2, -1), keepdim=True)
        projected: Tensor = WEIGHT_GAIN * (gradient / scale - unit * along * (norm / scale**2))
        return projected - projected.mean(dim=(-3, -2, -1), keepdim=True)


def global_average_pool(features: Tensor) -> Tensor:
    """Mean over height and width: [B, C, H, W] to [B, C]."""
    return functional.adaptive_avg_pool2d(features, 1).flatten(1)


def output_count(study: Study) -> int:
    """Outputs of the last layer: one for a binary task, one for each class otherwise."""
    return 1 if study.task == "binary" else study.class_count


def as_logits(scores: Tensor) -> Tensor:
    """Logits in the shape that the contract asks for: [B, 1] to [B], any other [B, classes] unchanged."""
    return scores.squeeze(1) if scores.shape[1] == 1 else scores


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that starts at zero: the first prediction is the same for every image."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with up to 32 groups (Wu & He 2018, arXiv 1803.08494): the norm of the torchvision architectures here."""
    return nn.GroupNorm(math.gcd(32, channels), channels)
