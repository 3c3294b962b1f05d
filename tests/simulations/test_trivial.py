# SPDX-License-Identifier: Apache-2.0
"""Trivial baselines: the numbers they see by hand, and the known figures of the shared chest X-rays."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from common.data.cohort import ByteArray, Dataset, IntArray, Split
from simulations.trivial import BORDER, COARSE, border_pixels, coarse_pixels, trivial_baselines
from tests.simulations.sample_run import DATA


def _dataset(images: ByteArray, labels: IntArray) -> Dataset:
    patients = np.arange(len(labels))
    return Dataset(images, labels, patients, tuple(map(str, patients)), ("a", "b"), {}, None, None, False, "0" * 64)


def test_coarse_pixels_are_block_means() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 1, 16, 16)).astype(np.uint8)
    blocks = images.reshape(3, 8, 2, 8, 2).mean(axis=(2, 4)).reshape(3, 64) / 255
    assert coarse_pixels(images) == pytest.approx(blocks, abs=1e-6)


def test_coarse_pixels_keep_the_mean_where_cells_cut_pixels() -> None:
    images = np.random.default_rng(1).integers(0, 256, (2, 3, 28, 28)).astype(np.uint8)
    assert coarse_pixels(images).reshape(2, 3, 64).mean(axis=2) == pytest.approx(images.mean(axis=(2, 3)) / 255, abs=1e-6)


@pytest.mark.parametrize(("size", "frame"), [(64, 4), (32, 2), (28, 2), (16, 1)])
def test_border_sees_the_frame_and_nothing_else(size: int, frame: int) -> None:
    images = np.random.default_rng(2).integers(0, 256, (1, 1, size, size)).astype(np.uint8)
    inside = images.copy()
    inside[:, :, frame:-frame, frame:-frame] = 0
    assert np.array_equal(border_pixels(images), border_pixels(inside))
    edge = images.copy()
    edge[0, 0, frame - 1, size // 2] ^= 255
    assert not np.array_equal(border_pixels(images), border_pixels(edge))


def test_known_figures_of_the_shared_chest_xrays() -> None:
    """8x8 pixels .982; border .943 with all 960 pixels, here 256 numbers."""
    with np.load(DATA / "kermany_cxr" / "kermany_cxr_64.npz") as file:
        images, labels, ids = file["images"][:, None], file["pneumonia"].astype(np.int64), file["patient_id"]
    held_out = {i: int.from_bytes(hashlib.sha256(f"test|{i}".encode()).digest()[:8], "big") < 0.2 * 2**64 for i in set(ids)}
    split = np.array([Split.TEST if held_out[i] else Split.TRAIN for i in ids], dtype=np.uint8)
    assert (split == Split.TEST).sum() == 978
    found = trivial_baselines(_dataset(images, labels), split)
    assert found[COARSE] == pytest.approx(0.982, abs=0.002)
    assert found[BORDER] == pytest.approx(0.943, abs=0.004)


def test_one_class_cannot_be_measured() -> None:
    images = np.random.default_rng(3).integers(0, 256, (6, 1, 16, 16)).astype(np.uint8)
    split = np.array([0, 0, 0, 2, 2, 2], dtype=np.uint8)
    for labels in ([0, 0, 0, 0, 1, 1], [0, 1, 0, 1, 1, 1]):
        assert trivial_baselines(_dataset(images, np.array(labels)), split) == {COARSE: None, BORDER: None}
    assert trivial_baselines(_dataset(images, np.array([0, 1, 0, 1, 0, 1])), np.zeros(6, dtype=np.uint8)) == {COARSE: None, BORDER: None}
