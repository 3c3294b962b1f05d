# SPDX-License-Identifier: Apache-2.0
"""`vgg16`: the convolutions of torchvision's VGG-16 (Simonyan & Zisserman 2015, arXiv 1409.1556), a global mean, one linear layer.

14.7 million parameters instead of 138 million: the three large linear layers are left out, which private training could not use.
Names and shapes of the convolutions are torchvision's (`features.0.weight`, …). It has no normalisation, as the original.
"""

from __future__ import annotations

from torch import Tensor, nn

from common.models.backbone import BackboneModel, initialise, replace_layers, stem
from common.models.base import MedicalModel
from common.models.layers import global_average_pool, output_count
from common.study import Study

FEATURES = 512


class Vgg16(BackboneModel):
    """Images [B, channels, H, W] in model units to logits."""

    head_name = "classifier"
    stem_name = "features.0"

    def __init__(self, image_size: int, channels: int, outputs: int) -> None:
        super().__init__(image_size)
        from torchvision.models.vgg import cfgs, make_layers

        layers = make_layers(cfgs["D"])
        layers[0] = stem(channels, layers[0])
        self.features = layers
        self.classifier = nn.Linear(FEATURES, outputs)
        replace_layers(self)
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                initialise(layer)

    def backbone(self, images: Tensor) -> Tensor:
        """Features [B, 512]."""
        return global_average_pool(self.get_submodule("features")(images))


def build(study: Study) -> MedicalModel:
    """The model of a study."""
    return Vgg16(study.data.image_size, study.data.channels, output_count(study))
