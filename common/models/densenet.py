# SPDX-License-Identifier: Apache-2.0
"""`densenet121`: torchvision's DenseNet-121 (Huang et al. 2017, arXiv 1608.06993) with GroupNorm and no in-place operation.

Names and shapes of all weights are torchvision's; its own forward ends with an in-place ReLU, ours does not.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from common.models.backbone import BackboneModel, adopt, replace_layers, stem
from common.models.base import MedicalModel
from common.models.layers import global_average_pool, output_count
from common.study import Study


class DenseNet121(BackboneModel):
    """Images [B, channels, H, W] in model units to logits."""

    head_name = "classifier"
    stem_name = "features.conv0"

    def __init__(self, image_size: int, channels: int, outputs: int) -> None:
        super().__init__(image_size)
        from torchvision.models import DenseNet

        net = DenseNet(num_classes=outputs)
        net.features.conv0 = stem(channels, net.features.conv0)
        adopt(self, net)
        replace_layers(self)

    def backbone(self, images: Tensor) -> Tensor:
        """Features [B, 1024]."""
        return global_average_pool(functional.relu(self.get_submodule("features")(images)))


def build(study: Study) -> MedicalModel:
    """The model of a study."""
    return DenseNet121(study.data.image_size, study.data.channels, output_count(study))
