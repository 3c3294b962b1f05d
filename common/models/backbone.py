# SPDX-License-Identifier: Apache-2.0
"""Models that are a backbone and one linear head, with torchvision's names; and how their backbone is frozen.

A subclass builds its layers, names its head in `head_name`, its first convolution in `stem_name`, and gives `backbone`. Once
`freeze_backbone` was called only the head trains, the backbone's output counts as frozen features that are computed once for
each image, and `forward` takes these features instead of images.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Iterable
from typing import ClassVar

import torch
from torch import Tensor, nn

from common.models.base import INPUT_MEAN, INPUT_SCALE, MedicalModel
from common.models.layers import as_logits, group_norm

CODE_VERSION = 1  # raise it with every change of an architecture that changes its features


class BackboneModel(MedicalModel):
    """Base of the torchvision architectures."""

    head_name: ClassVar[str]
    stem_name: ClassVar[str]

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self._image_size = image_size
        self._frozen_digest: str | None = None

    def backbone(self, images: Tensor) -> Tensor:
        """Images [B, C, H, W] in model units to features [B, F]."""
        raise NotImplementedError

    def forward(self, inputs: Tensor) -> Tensor:
        """Images, or features [B, F] once the backbone is frozen, to logits."""
        features = self.backbone(inputs) if self._frozen_digest is None else inputs
        return as_logits(self.get_submodule(self.head_name)(features))

    @property
    def feature_digest(self) -> str | None:
        """SHA-256 of architecture, image size and all backbone weights once it is frozen."""
        return self._frozen_digest

    @torch.no_grad()
    def frozen_features(self, images: Tensor) -> Tensor:
        """Output of the frozen backbone: [B, C, H, W] to [B, F]. Raises TypeError when it is not frozen."""
        if self._frozen_digest is None:
            return super().frozen_features(images)
        return self.backbone(images)

    def freeze_backbone(self) -> None:
        """Train the head only from here on. Comes after the weights were loaded: they are part of the feature digest."""
        frozen = [(name, value) for name, value in self.named_parameters() if not self.in_head(name)]
        for _, value in frozen:
            value.requires_grad_(False)
        self._frozen_digest = self._digest(frozen)

    def in_head(self, name: str) -> bool:
        """Whether the parameter belongs to the head."""
        return name.startswith(self.head_name + ".")

    def _digest(self, weights: Iterable[tuple[str, Tensor]]) -> str:
        digest = hashlib.sha256(repr((type(self).__name__, CODE_VERSION, self._image_size, INPUT_MEAN, INPUT_SCALE)).encode())
        for name, value in weights:
            digest.update(f"{name} {tuple(value.shape)}\n".encode())
            digest.update(value.detach().cpu().numpy().data)
        return digest.hexdigest()


def adopt(model: nn.Module, source: nn.Module) -> None:
    """Give `model` the children of `source` under the same names, so that state-dict names stay the source's."""
    for name, child in source.named_children():
        model.add_module(name, child)


def replace_layers(module: nn.Module) -> None:
    """Replace in `module`, in place: BatchNorm by GroupNorm, in-place ReLU by a plain one, and 2x2 pools by ones that round sizes up.

    The pools make images below 32 pixels possible; where sizes are even nothing changes.
    """
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, group_norm(child.num_features))
        elif isinstance(child, nn.ReLU):
            setattr(module, name, nn.ReLU(inplace=False))
        elif isinstance(child, nn.AvgPool2d | nn.MaxPool2d) and child.kernel_size == 2:
            child.ceil_mode = True
        replace_layers(child)


def stem(channels: int, like: nn.Conv2d) -> nn.Conv2d:
    """The first convolution for images of `channels` channels; the given one itself when it fits."""
    if channels == like.in_channels:
        return like
    new = copy.deepcopy(like)
    new.in_channels = channels
    new.weight = nn.Parameter(torch.empty(like.out_channels, channels, *like.kernel_size))
    return initialise(new)


def initialise(layer: nn.Conv2d) -> nn.Conv2d:
    """Torchvision's initial weights: Kaiming normal for the outputs (He et al. 2015, arXiv 1502.01852), bias zero."""
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
