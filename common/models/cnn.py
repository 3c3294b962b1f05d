# SPDX-License-Identifier: Apache-2.0
"""`cnn`: a small network that trains well under privacy at few steps, for any image size and channels.

Three weight-standardised convolutions, each halving the size, with GroupNorm; ReLU between them; a mean over a 2x2 grid of areas; a linear
head from zero. About 24,000 parameters whatever the image size.

Two choices are for training under privacy, where steps are few and noisy. No ReLU before the head: its inputs have both signs, so patients'
gradients of the head do not share one large common direction, which clipping would spend its length on. And the first convolution
starts from edge filters in all orientations instead of random ones: no patient's data is in them, and they are trained like the rest.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from common.models.base import MedicalModel
from common.models.layers import WSConv2d, as_logits, output_count, zero_linear
from common.study import Study

WIDTHS = (16, 32, 64)
KERNELS = (5, 3, 3)
GROUPS = 4
POOL = 2
EDGE_WAVELENGTH = 4.0  # pixels
EDGE_WIDTH = 1.3  # pixels, standard deviation of the Gaussian window


def convolution(inputs: int, outputs: int, kernel: int) -> WSConv2d:
    """Convolution that halves the size: [B, inputs, H, W] to [B, outputs, ⌈H/2⌉, ⌈W/2⌉]."""
    return WSConv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False)


def normed(layer: WSConv2d) -> list[nn.Module]:
    """A convolution and its GroupNorm."""
    return [layer, nn.GroupNorm(GROUPS, layer.out_channels)]


def edge_filters(count: int, size: int) -> Tensor:
    """Gabor filters [count, size, size] of norm 1 and mean 0: `count`/2 orientations, each as a line and as an edge (Daugman 1985)."""
    place = torch.arange(size, dtype=torch.float64) - size // 2
    y, x = torch.meshgrid(place, place, indexing="ij")
    index = torch.arange(count)
    angle = (math.pi / (count // 2) * (index // 2)).view(-1, 1, 1)
    phase = (math.pi / 2 * (index % 2)).view(-1, 1, 1)
    along = x * angle.cos() + y * angle.sin()
    window = torch.exp(-(x**2 + y**2) / (2 * EDGE_WIDTH**2))
    filters = window * torch.cos(2 * math.pi / EDGE_WAVELENGTH * along + phase)
    filters -= filters.mean(dim=(1, 2), keepdim=True)
    unit: Tensor = filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1)
    return unit.float()


@torch.no_grad()
def start_from_edges(layer: WSConv2d) -> None:
    """Give each random filter [O, C, k, k] the pattern of an edge, equal in all channels, at the norm it has."""
    patterns = edge_filters(layer.out_channels, layer.kernel_size[0])[:, None]
    norms = layer.weight.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    layer.weight.copy_(patterns / math.sqrt(layer.in_channels) * norms)


class SmallCnn(MedicalModel):
    """Images [B, channels, H, W] in model units to logits."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        first, second, last = (convolution(*sizes) for sizes in zip((channels, *WIDTHS), WIDTHS, KERNELS, strict=False))
        start_from_edges(first)
        self.stages = nn.Sequential(
            nn.Sequential(*normed(first), nn.ReLU(inplace=False)),
            nn.Sequential(*normed(second), nn.ReLU(inplace=False)),
            nn.Sequential(*normed(last)),
        )
        self.pool = nn.AdaptiveAvgPool2d(POOL)
        self.head = zero_linear(WIDTHS[-1] * POOL**2, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Images to logits."""
        features = self.pool(self.stages(inputs))  # [B, 64, 2, 2]
        return as_logits(self.head(features.flatten(1)))


def build(study: Study) -> MedicalModel:
    """The model of a study."""
    return SmallCnn(study.data.channels, output_count(study))
