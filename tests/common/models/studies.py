# SPDX-License-Identifier: Apache-2.0
"""Studies for the tests of models."""

from __future__ import annotations

from typing import Any

from common.study import Study


def study(name: str = "cnn", size: int = 32, channels: int = 1, classes: int = 2, seed: int = 0, **model: Any) -> Study:
    """A study without privacy; two classes are a binary task."""
    labels = [f"class-{number}" for number in range(classes)]
    content = {
        "name": "test",
        "task": "binary" if classes == 2 else "multiclass",
        "data": {"image_size": size, "channels": channels, "labels": labels},
        "model": {"name": name, **model},
        "privacy": "none",
        "seed": seed,
    }
    return Study.model_validate(content)
