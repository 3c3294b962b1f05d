# SPDX-License-Identifier: Apache-2.0
"""The feature store: frozen features of every image of a data set, computed once and shared by all that need them.

A file is named by what it depends on, `features/<data set digest>-<feature digest>.npy`, so it is never stale and never
changed. It appears only when it is whole; several processes at once compute it once. It is opened memory-mapped: workers, seeds
and baselines share one copy in memory. Features are patient data and stay where the images are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from common.data.cohort import Dataset
from common.errors import InputError, StorageError
from common.files import build_once

if TYPE_CHECKING:
    from common.models.base import MedicalModel

FloatArray = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]

BATCH_PIXELS = 1 << 17  # bounds memory: 32 images of 64x64, 2 of 224x224
MAX_BATCH_IMAGES = 64


def ensure_features(
    dataset: Dataset, model: MedicalModel, cache: Path, progress: Progress | None = None, device: str = "cpu"
) -> FloatArray:
    """Features float32 [N, F] of all images, memory-mapped and read-only; computed only if they are not stored yet.

    `progress(done, total)` counts images, in the process that computes. Raises InputError when the model has no frozen features or
    they are not finite, StorageError when the file cannot be written or is damaged.
    """
    path = feature_path(dataset, model, cache)
    build_once(path, lambda file: write_features(file, dataset, model, progress, device))
    return open_features(dataset, model, cache)


def open_features(dataset: Dataset, model: MedicalModel, cache: Path) -> FloatArray:
    """Features float32 [N, F] that `ensure_features` stored. Raises StorageError when they are missing or damaged."""
    path = feature_path(dataset, model, cache)
    try:
        features: FloatArray = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise StorageError(f"no stored features {path}; call ensure_features first, with the same cache folder") from error
    except (OSError, ValueError, EOFError) as error:
        raise StorageError(f"stored features {path} cannot be read ({error}); delete the file, it is made again") from error
    if features.dtype != np.float32 or features.ndim != 2 or len(features) != len(dataset):
        expected = f"float32 ({len(dataset)}, F)"
        raise StorageError(
            f"stored features {path} are {features.dtype} {features.shape}, expected {expected}; delete the file, it is made again"
        )
    return features


def feature_path(dataset: Dataset, model: MedicalModel, cache: Path) -> Path:
    """Where the features lie. Raises InputError when the model has none or there are no images."""
    if model.feature_digest is None:
        raise InputError(f"{type(model).__name__} has no frozen features; train it on the images")
    if len(dataset) == 0:
        raise InputError("the data set has no images, so it has no features; choose another")
    return cache / "features" / f"{dataset.digest}-{model.feature_digest}.npy"


def write_features(file: IO[bytes], dataset: Dataset, model: MedicalModel, progress: Progress | None, device: str) -> None:
    """Stream the features of all images into `file` in npy format, batch by batch."""
    done = 0
    for features in feature_batches(dataset, model, device):
        if done == 0:
            shape = (len(dataset), features.shape[1])
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.write(np.ascontiguousarray(features, dtype="<f4").data)
        done += len(features)
        if progress is not None:
            progress(done, len(dataset))


def feature_batches(dataset: Dataset, model: MedicalModel, device: str) -> Iterator[FloatArray]:
    """Features [B, F] of consecutive images, in order."""
    import torch

    from common.models.base import to_model_units

    size = max(1, min(MAX_BATCH_IMAGES, BATCH_PIXELS // (dataset.images.shape[-1] * dataset.images.shape[-2])))
    with computing(model, device):
        for start in range(0, len(dataset), size):
            images = torch.from_numpy(np.array(dataset.images[start : start + size]))
            with torch.no_grad():
                features = model.frozen_features(to_model_units(images.to(device))).cpu().numpy()
            if not np.isfinite(features).all():
                raise InputError(f"features of images {start} to {start + len(images) - 1} are not finite; check the pretrained weights")
            yield features


@contextmanager
def computing(model: MedicalModel, device: str) -> Iterator[None]:
    """Put the model on `device` and into evaluation mode, and back afterwards."""
    home, was_training = next(model.parameters()).device, model.training
    model.to(device).eval()
    try:
        yield
    finally:
        model.to(home).train(was_training)
