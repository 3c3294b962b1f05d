# SPDX-License-Identifier: Apache-2.0
"""Canary patients: made up, each with one image or one row of features, each in or out of the training data by a fair coin.

They go through the same sampling, clipping and noise as real patients. For a model that is trained on stored features a canary has
features of its own: `NORM` in length, on a few coordinates that no other canary has, so their gradients are orthogonal but for the
bias. For a model that is trained on images a canary is a picture of blocks of noise. Labels are random, so nothing can be learnt about
one canary from another. The coin comes from the operating system's generator; the contents need not be secret and come from a seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.rows import ImageRows, RowSource
from client.trainer import TrainingData
from common.data.cohort import ByteArray, Dataset, IntArray
from common.errors import InputError
from common.privacy.generator import SystemGenerator
from common.study import Augmentation

BoolArray = npt.NDArray[np.bool_]
FloatArray = npt.NDArray[np.float32]

NORM: Final = 4.0
MOST_COORDINATES: Final = 16


@dataclass(frozen=True)
class Canaries:
    """`contents` are images uint8 [m, C, H, W] or features `SparseRows`; `labels` int64 [m]; `included` bool [m] is the secret."""

    contents: ByteArray | SparseRows
    labels: IntArray
    included: BoolArray

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class SparseRows:
    """Rows of `width` features that are 0 but for a few: `places` int64 [m, s] says where, `values` float32 [m, s] what."""

    places: IntArray
    values: FloatArray
    width: int

    def dense(self, rows: IntArray) -> FloatArray:
        """Some rows written out, float32 [R, width]."""
        full = np.zeros((len(rows), self.width), dtype=np.float32)
        np.put_along_axis(full, self.places[rows], self.values[rows], axis=1)
        return full


def draw_included(count: int) -> BoolArray:
    """A fair coin for each canary."""
    coins: BoolArray = (SystemGenerator().words(count) & np.uint64(1)).astype(np.bool_)
    return coins


def image_canaries(count: int, shape: tuple[int, int, int], classes: int, seed: int) -> Canaries:
    """Pictures of noise, uint8 [count, C, H, W]: black and white blocks of 1, 2, 4 or 8 pixels."""
    random = np.random.default_rng(seed)
    pictures = np.empty((count, *shape), dtype=np.uint8)
    for number in range(count):
        pictures[number] = _picture(shape, random)
    return Canaries(pictures, random.integers(0, classes, count), draw_included(count))


def _picture(shape: tuple[int, int, int], random: np.random.Generator) -> ByteArray:
    channels, height, width = shape
    block = int(random.choice([1, 2, 4, 8]))
    cells = random.integers(0, 2, size=(channels, -(-height // block), -(-width // block)))
    full = cells.repeat(block, axis=1).repeat(block, axis=2)[:, :height, :width]
    return np.asarray(full * 255, dtype=np.uint8)


def feature_canaries(count: int, width: int, classes: int, seed: int) -> Canaries:
    """Features on coordinates of their own. Raises InputError when there are fewer features than canaries."""
    each = min(width // count, MOST_COORDINATES)
    if each < 1:
        raise InputError(f"audit: {count} canaries do not fit into {width} features; audit at a smaller ε, which needs fewer: --epsilon")
    random = np.random.default_rng(seed)
    places = random.permutation(width)[: count * each].reshape(count, each)
    signs = random.choice([-1.0, 1.0], size=(count, each))
    values = (signs * NORM / np.sqrt(each)).astype(np.float32)
    return Canaries(SparseRows(places, values, width), random.integers(0, classes, count), draw_included(count))


@dataclass(frozen=True)
class MixedFeatures:
    """Stored features of a site's rows, and after them the canaries'."""

    stored: RowSource
    own_rows: IntArray
    canaries: SparseRows
    device: torch.device

    def inputs(self, rows: IntArray, uniforms: Tensor | None) -> Tensor:
        """Features [R, F] for rows of the mixed data set."""
        own = rows < len(self.own_rows)
        mixed = torch.empty(len(rows), self.canaries.width, device=self.device)
        if own.any():
            mixed[torch.from_numpy(own)] = self.stored.inputs(self.own_rows[rows[own]], uniforms)
        if not own.all():
            dense = self.canaries.dense(rows[~own] - len(self.own_rows))
            mixed[torch.from_numpy(~own)] = torch.from_numpy(dense).to(self.device)
        return mixed


@dataclass(frozen=True)
class Mixed:
    """A site's own training rows (`own`) with canaries after them: rows 0…n-1 of `data` are the site's, n…n+m-1 the canaries'."""

    data: TrainingData
    own: TrainingData
    own_rows: int
    own_patients: int

    @property
    def canary_rows(self) -> IntArray:
        """Rows of all canaries, in or out."""
        return np.arange(self.own_rows, len(self.data.dataset.labels), dtype=np.int64)


def mix(site: TrainingData, canaries: Canaries, device: torch.device) -> Mixed:
    """The site's data with the canaries that are in. Nobody but this simulation ever sees the others' rows."""
    own = site.flat_rows
    patients = np.split(np.arange(len(own), dtype=np.int64), site.first_row[1:])
    joined = [*patients, *([row] for row in len(own) + np.flatnonzero(canaries.included))]
    dataset = _mixed_dataset(site.dataset, own, canaries)
    rows: RowSource
    if isinstance(canaries.contents, SparseRows):
        rows = MixedFeatures(site.rows, own, canaries.contents, device)
    else:
        rows = ImageRows(dataset, Augmentation(), device)
    data = TrainingData(site.site, site.account, dataset, [np.asarray(part, dtype=np.int64) for part in joined], rows)
    return Mixed(data, site, len(own), len(patients))


def _mixed_dataset(dataset: Dataset, own: IntArray, canaries: Canaries) -> Dataset:
    images = dataset.images[own]
    if not isinstance(canaries.contents, SparseRows):
        images = np.concatenate([images, canaries.contents])
    return Dataset(
        images=images,
        labels=np.concatenate([dataset.labels[own], canaries.labels]),
        patients=np.arange(len(own) + len(canaries), dtype=np.int64),
        patient_ids=(),
        label_names=dataset.label_names,
        columns={},
        split=None,
        natural_sites=None,
        synthetic=True,
        digest="",
    )
