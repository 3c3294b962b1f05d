# SPDX-License-Identifier: Apache-2.0
"""The contract of a model.

A subclass decides its layers and `forward`. It may declare `frozen_features`: then these features are computed once for each image,
stored, and `forward` gets them instead of images. Everything else (initial weights, which tensors travel, losses, privacy) is the
framework's. A model must not have BatchNorm, in-place operations, or buffers that training changes: each breaks the privacy of a
patient, and `common.models.registry` refuses such a model when it is built.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

INPUT_MEAN = 0.5
INPUT_SCALE = 0.25


def to_model_units(images: Tensor) -> Tensor:
    """Scale uint8 images [B, C, H, W] to float32 by public constants: grey 0…255 becomes -2…2."""
    return images.to(torch.float32).div_(255.0).sub_(INPUT_MEAN).div_(INPUT_SCALE)


class MedicalModel(nn.Module):
    """Base of every architecture.

    `forward` takes float32 images [B, C, H, W] in model units (or features [B, F] if `feature_digest` is set, or of a table) and
    returns logits: [B] for a binary task, [B, classes] otherwise.
    """

    @property
    def feature_digest(self) -> str | None:
        """SHA-256 that names `frozen_features` completely (code version, settings, weights), or None if there are none."""
        return None

    def frozen_features(self, images: Tensor) -> Tensor:
        """Features that no training changes: images [B, C, H, W] in model units to float32 [B, F]."""
        raise TypeError(f"{type(self).__name__} declares no frozen features (asked for {len(images)} images)")

    def trainable_state(self) -> dict[str, Tensor]:
        """The tensors that travel: trainable parameters by name, in registration order, detached but not copied."""
        return {name: value.detach() for name, value in self.named_parameters() if value.requires_grad}
