# SPDX-License-Identifier: Apache-2.0
"""Studies for the tests of models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from common.models.base import MedicalModel
from common.study import TABLE_MODELS, Study
from tests.support.tables import table_data


def study(name: str = "cnn", size: int = 32, channels: int = 1, classes: int = 2, seed: int = 0, **model: Any) -> Study:
    """A study without privacy; two classes are a binary task."""
    labels = [f"class-{number}" for number in range(classes)]
    image = {"image_size": size, "channels": channels, "labels": labels}
    content = {
        "name": "test",
        "task": "binary" if classes == 2 else "multiclass",
        "data": table_data(labels=labels) if name in TABLE_MODELS else image,
        "model": {"name": name, **model},
        "privacy": "none",
        "seed": seed,
    }
    return Study.model_validate(content)


def random_inputs(model: MedicalModel, of: Study, rows: int, channels: int = 1) -> Tensor:
    """What the model's `forward` takes: images, their frozen features, or features of a table."""
    if of.data.kind == "tabular":
        return torch.randn(rows, len(of.data.feature_names))
    images = torch.randn(rows, channels, of.data.image_size, of.data.image_size)
    return model.frozen_features(images) if model.feature_digest else images
