# SPDX-License-Identifier: Apache-2.0
"""Small studies that really train, in seconds."""

from pathlib import Path
from typing import Any

import yaml

from common.study import Study

PRIVATE = {"epsilon": 8.0, "delta": 1e-5, "clipping_norm": 0.5, "views_per_patient": 2}


def small(privacy: Any = "none", **changes: Any) -> Study:
    """Four sites of synthetic images, three rounds of two steps; no private evaluation unless `evaluation.private` asks for one."""
    content: dict[str, Any] = {
        "name": "small",
        "data": {"image_size": 32, "phantom": {"patients": 80, "scanners": 4}},
        "training": {"local_steps": 2, "sampling_rate": 0.3, "learning_rate": 0.5},
        "federation": {"rounds": 3, "round_timeout_seconds": 120.0},
        "privacy": privacy,
        "evaluation": {"private": "none"},
    }
    return Study.model_validate(content).with_changes(changes)


def write_study(study: Study, folder: Path) -> Path:
    """A study file that says what `study` is."""
    path = folder / f"{study.name}.yaml"
    path.write_text(yaml.safe_dump(study.model_dump(mode="json")), encoding="utf-8")
    return path
