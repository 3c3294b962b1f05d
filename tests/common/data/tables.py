# SPDX-License-Identifier: Apache-2.0
"""Small tables and files for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common import study
from common.data.sources import RawTable

DATA = Path(__file__).resolve().parents[3].parent / "shared" / "data"
KERMANY = DATA / "kermany_cxr" / "kermany_cxr_64.npz"
PNEUMONIA_MNIST = DATA / "medmnist" / "pneumoniamnist.npz"


def small_data(**changes: Any) -> study.Data:
    return study.Data(**{"source": "npz", "image_size": 16, "min_patients": 2, **changes})


def small_images(count: int = 8, size: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size), dtype=np.uint8)


def small_table(**changes: Any) -> RawTable:
    """Eight images of four patients, two each, labels 0 0 1 1 0 0 1 1."""
    fields: dict[str, Any] = {
        "where": "small.npz",
        "images": small_images(),
        "labels": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "patient_ids": np.array(["a", "a", "b", "b", "c", "c", "d", "d"]),
    }
    return RawTable(**(fields | changes))


def write_npz(path: Path, **changes: Any) -> Path:
    arrays = {
        "images": small_images(),
        "labels": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "patient_id": np.array(["a", "a", "b", "b", "c", "c", "d", "d"]),
    } | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path
