# SPDX-License-Identifier: Apache-2.0
"""Trivial baselines that keep everybody honest: what can be read off the images without looking at them properly.

Both are logistic regressions on a handful of numbers, trained on the training images of all sites together and tested on the
held-out ones. If the frame around the image alone predicts the label, the data set has a shortcut (position, exposure, burnt-in
marks), and a high AUROC on it says little about the disease.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from common.data.cohort import ByteArray, Dataset, IntArray, Split
from common.metrics import metrics_of

FloatArray = npt.NDArray[np.float32]

COARSE = "8x8 pixels + logistic"
BORDER = "image border alone"
ONE_FEATURE = "best single feature"
COARSE_CELLS = 8
BORDER_SHARE = 1 / 16  # 4 pixels of 64
BORDER_LAYERS = 4
BORDER_CELLS = 16
MAX_TRAINING_IMAGES = 20_000
CHUNK_IMAGES = 512
REGULARISATION_C = 0.1


def trivial_baselines(dataset: Dataset, split: ByteArray) -> dict[str, float | None]:
    """AUROC on the held-out images of each trivial baseline (macro over classes if there are several; of a table only for two).

    `split` uint8 [N] of `Split` says what each image of `dataset` is for. At most 20,000 training images are used, evenly spaced.
    None where training or held-out images have one class only, or where a class is held out that no training image has.
    """
    train, test = np.flatnonzero(split == Split.TRAIN), np.flatnonzero(split == Split.TEST)
    train = train[:: max(1, -(-len(train) // MAX_TRAINING_IMAGES))]
    classes = set(dataset.labels[train].tolist())
    usable = len(classes) >= 2 and len(test) > 0 and set(dataset.labels[test].tolist()) <= classes
    if dataset.features is not None:
        return {ONE_FEATURE: _best_feature(dataset.features, dataset.labels, train, test) if usable and classes == {0, 1} else None}
    if not usable:
        return {COARSE: None, BORDER: None}
    makers = {COARSE: coarse_pixels, BORDER: border_pixels}
    return {name: _logistic_auroc(dataset, train, test, make) for name, make in makers.items()}


def _best_feature(features: FloatArray, labels: IntArray, train: IntArray, test: IntArray) -> float:
    """AUROC on `test` of the one feature, up or down, that tells the labels of `train` apart best."""
    from sklearn.metrics import roc_auc_score

    alone = [float(roc_auc_score(labels[train], column)) - 0.5 for column in features[train].T]
    best = int(np.argmax(np.abs(alone)))
    return float(roc_auc_score(labels[test], np.sign(alone[best]) * features[test, best]))


def coarse_pixels(images: ByteArray) -> FloatArray:
    """Area mean of each channel on an 8x8 grid: uint8 [N, C, H, W] to float32 [N, C*64] in 0…1."""
    return _area_mean(images, COARSE_CELLS, COARSE_CELLS)


def border_pixels(images: ByteArray) -> FloatArray:
    """The frame of one sixteenth of the image size on each side, everything inside left out.

    uint8 [N, C, H, W] to float32 [N, F]: each of the four strips is averaged to at most 4 layers (outside to inside) by 16 cells.
    """
    high, wide = (max(1, round(size * BORDER_SHARE)) for size in images.shape[2:])
    layers_high, layers_wide = min(BORDER_LAYERS, high), min(BORDER_LAYERS, wide)
    strips = (
        _area_mean(images[:, :, :high], layers_high, BORDER_CELLS),
        _area_mean(images[:, :, -high:], layers_high, BORDER_CELLS),
        _area_mean(images[:, :, :, :wide], BORDER_CELLS, layers_wide),
        _area_mean(images[:, :, :, -wide:], BORDER_CELLS, layers_wide),
    )
    frame: FloatArray = np.concatenate(strips, axis=1)
    return frame


def _area_mean(images: ByteArray, rows: int, columns: int) -> FloatArray:
    """Mean over a grid of equal cells, exact also where cells cut pixels: [N, C, H, W] to [N, C*rows*columns] in 0…1."""
    down, across = _overlap(images.shape[2], rows), _overlap(images.shape[3], columns)
    grid: FloatArray = np.matmul(np.matmul(down, images.astype(np.float32) / 255), across.T)
    flat: FloatArray = grid.reshape(len(images), -1)
    return flat


def _overlap(size: int, cells: int) -> FloatArray:
    """Share of each pixel in each cell, [cells, size], rows sum to 1."""
    edges = np.linspace(0, size, cells + 1)
    pixel = np.arange(size)
    covered = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    share: FloatArray = (np.clip(covered, 0, None) * cells / size).astype(np.float32)
    return share


def _features(dataset: Dataset, rows: IntArray, make: Callable[[ByteArray], FloatArray]) -> FloatArray:
    """Features of some rows, a few images in memory at a time."""
    return np.concatenate([make(dataset.images[rows[start : start + CHUNK_IMAGES]]) for start in range(0, len(rows), CHUNK_IMAGES)])


def _logistic_auroc(dataset: Dataset, train: IntArray, test: IntArray, make: Callable[[ByteArray], FloatArray]) -> float | None:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=REGULARISATION_C, max_iter=300))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a baseline that stopped early is still a baseline
        model.fit(_features(dataset, train, make), dataset.labels[train])
    scores = model.predict_proba(_features(dataset, test, make)).astype(np.float64)
    numbers = np.searchsorted(model.classes_, dataset.labels[test])
    return metrics_of(numbers, scores[:, 1] if scores.shape[1] == 2 else scores / scores.sum(axis=1, keepdims=True))["auroc"]
