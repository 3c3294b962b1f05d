# SPDX-License-Identifier: Apache-2.0
"""From row numbers to what the model eats: images in model units, stored features of images, or the features of a table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from common.data.cohort import Dataset, IntArray
from common.data.transforms import augment
from common.models.base import to_model_units
from common.study import Augmentation

AUGMENT_UNIFORMS = 8


class RowSource(Protocol):
    """Gives model inputs for rows of a data set."""

    def inputs(self, rows: IntArray, uniforms: Tensor | None) -> Tensor:
        """Float32 inputs [R, ...] for rows [R]; `uniforms` [R, 8] in [0, 1) drive augmentation, None means none."""
        ...


@dataclass(frozen=True)
class ImageRows:
    """Images, augmented when asked."""

    dataset: Dataset
    augmentation: Augmentation
    device: torch.device

    def inputs(self, rows: IntArray, uniforms: Tensor | None) -> Tensor:
        """Images [R, C, H, W] in model units."""
        images = to_model_units(torch.from_numpy(np.ascontiguousarray(self.dataset.images[rows])).to(self.device))
        return images if uniforms is None else augment(images, self.augmentation, uniforms.to(self.device))


@dataclass(frozen=True)
class FeatureRows:
    """Features that were computed once, or those of a table: float32 [N, F], memory-mapped."""

    features: npt.NDArray[np.float32]
    device: torch.device

    def inputs(self, rows: IntArray, uniforms: Tensor | None) -> Tensor:
        """Features [R, F]."""
        if uniforms is not None:
            raise ValueError("stored features cannot be augmented")
        return torch.from_numpy(self.features[rows]).to(self.device)


def targets_of(dataset: Dataset, rows: IntArray, task: str, device: torch.device) -> Tensor:
    """Labels [R] as the loss wants them: float32 for a binary task, int64 class numbers otherwise."""
    labels = torch.from_numpy(dataset.labels[rows]).to(device)
    return labels.to(torch.float32) if task == "binary" else labels
