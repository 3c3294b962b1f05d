# SPDX-License-Identifier: Apache-2.0
"""`cnn`: a small network that trains well under privacy at few steps, for any image size and channels.

Three weight-standardised convolutions, each halving the size, with GroupNorm and ReLU; a mean over a 2x2 grid of areas; a linear
head from zero. About 24,000 parameters whatever the image size.
"""

from __future__ import annotations

from torch import Tensor, nn

from common.models.base import MedicalModel
from common.models.layers import WSConv2d, as_logits, output_count, zero_linear
from common.study import Study

WIDTHS = (16, 32, 64)
KERNELS = (5, 3, 3)
GROUPS = 4
POOL = 2


def stage(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    """Convolution with stride 2, GroupNorm, ReLU: [B, inputs, H, W] to [B, outputs, ⌈H/2⌉, ⌈W/2⌉]."""
    convolution = WSConv2d(inputs, outputs, kernel, stride=2, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.GroupNorm(GROUPS, outputs), nn.ReLU(inplace=False))


class SmallCnn(MedicalModel):
    """Images [B, channels, H, W] in model units to logits."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        inputs = (channels, *WIDTHS)
        self.stages = nn.Sequential(*(stage(*sizes) for sizes in zip(inputs, WIDTHS, KERNELS, strict=False)))
        self.pool = nn.AdaptiveAvgPool2d(POOL)
        self.head = zero_linear(WIDTHS[-1] * POOL**2, outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Images to logits."""
        features = self.pool(self.stages(inputs))  # [B, 64, 2, 2]
        return as_logits(self.head(features.flatten(1)))


def build(study: Study) -> MedicalModel:
    """The model of a study."""
    return SmallCnn(study.data.channels, output_count(study))
