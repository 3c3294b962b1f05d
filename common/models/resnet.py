# SPDX-License-Identifier: Apache-2.0
"""`resnet18`: torchvision's ResNet-18 (He et al. 2016, arXiv 1512.03385) with GroupNorm and no in-place operation.

Names and shapes of all weights are torchvision's. The block adds out of place, because per-sample gradients need the activations
that an in-place sum would overwrite.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from common.models.backbone import BackboneModel, adopt, replace_layers, stem
from common.models.base import MedicalModel
from common.models.layers import global_average_pool, group_norm, output_count
from common.study import Study

BLOCKS = [2, 2, 2, 2]


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; takes the arguments that torchvision's ResNet gives to its blocks."""

    expansion = 1

    def __init__(
        self,
        inplanes: int,
        planes: int,
        stride: int = 1,
        downsample: nn.Module | None = None,
        groups: int = 1,
        base_width: int = 64,
        dilation: int = 1,
        norm_layer: Callable[[int], nn.Module] = group_norm,
    ) -> None:
        super().__init__()
        if (groups, base_width, dilation) != (1, 64, 1):
            raise ValueError("BasicBlock: only groups=1, base_width=64 and dilation=1")
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, padding=1, bias=False)
        self.bn1 = norm_layer(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = norm_layer(planes)
        self.downsample = downsample

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, inplanes, H, W] to [B, planes, H/stride, W/stride]."""
        shortcut = inputs if self.downsample is None else self.downsample(inputs)
        hidden = functional.relu(self.bn1(self.conv1(inputs)))
        return functional.relu(self.bn2(self.conv2(hidden)) + shortcut)


class ResNet18(BackboneModel):
    """Images [B, channels, H, W] in model units to logits."""

    head_name = "fc"
    stem_name = "conv1"

    def __init__(self, image_size: int, channels: int, outputs: int) -> None:
        super().__init__(image_size)
        from torchvision.models import ResNet

        net = ResNet(BasicBlock, BLOCKS, num_classes=outputs, norm_layer=group_norm)
        net.conv1 = stem(channels, net.conv1)
        adopt(self, net)
        replace_layers(self)

    def backbone(self, images: Tensor) -> Tensor:
        """Features [B, 512]."""
        hidden = images
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            hidden = self.get_submodule(name)(hidden)
        return global_average_pool(hidden)


def build(study: Study) -> MedicalModel:
    """The model of a study."""
    return ResNet18(study.data.image_size, study.data.channels, output_count(study))
