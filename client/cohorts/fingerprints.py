# SPDX-License-Identifier: Apache-2.0
"""What is remembered of one stored image, so that images can be compared without opening them again.

    sha256        of the stored pixels: exact duplicates
    appearance    64 bits that stay almost the same when an image is scaled, compressed or brightened: near duplicates
    thumbnail     16 x 16, stretched to 0…255: confirms a near duplicate, and finds images that look inverted
    low, high     smallest and largest value: constant images

`appearance` is the classic perceptual hash: the image averaged to 32 x 32, its cosine transform, and for each of the 8 x 8 lowest
frequencies whether it is above their median (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions").
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any, Final

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
HashArray = npt.NDArray[np.uint64]

THUMBNAIL_PIXELS: Final = 16
_GRID_PIXELS: Final = 32
_FREQUENCIES: Final = 8
FINGERPRINT: Final = np.dtype(
    [
        ("sha256", "u1", (32,)),
        ("appearance", "<u8"),
        ("thumbnail", "u1", (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)),
        ("low", "<u2"),
        ("high", "<u2"),
    ]
)


def fingerprints(images: npt.NDArray[Any]) -> npt.NDArray[np.void]:
    """One `FINGERPRINT` for each image of a block, uint8 or uint16 [n, S, S] or [n, S, S, 3]."""
    found = np.zeros(len(images), FINGERPRINT)
    if not len(images):
        return found
    flat = images.reshape(len(images), -1)
    grid = averaged(images, _GRID_PIXELS)
    found["sha256"] = digests(images)
    found["appearance"] = appearances(grid)
    found["thumbnail"] = _stretched(averaged(grid, THUMBNAIL_PIXELS))
    found["low"], found["high"] = flat.min(axis=1), flat.max(axis=1)
    return found


def digests(images: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """SHA-256 of each image's bytes, uint8 [n, 32]."""
    one_each = (hashlib.sha256(np.ascontiguousarray(image).data).digest() for image in images)
    return np.frombuffer(b"".join(one_each), np.uint8).reshape(-1, 32)


def averaged(images: npt.NDArray[Any], side: int) -> FloatArray:
    """Means over the cells of a grid, float32 [n, side, side]; colours are averaged. A smaller image repeats pixels."""
    values = images.mean(axis=3, dtype=np.float32) if images.ndim == 4 else images
    for axis, pixels in ((1, values.shape[1]), (2, values.shape[2])):
        starts = np.arange(side) * pixels // side
        sizes = np.maximum(np.diff(np.append(starts, pixels)), 1).astype(np.float32)
        shape = [1, 1, 1]
        shape[axis] = side
        values = np.add.reduceat(values, starts, axis=axis, dtype=np.float32) / sizes.reshape(shape)
    result: FloatArray = values
    return result


def appearances(grid: FloatArray) -> HashArray:
    """64 bits for each image of 32 x 32 means: which of the 64 lowest frequencies are above their median."""
    cosines = _cosines()
    lowest = (cosines @ grid @ cosines.T).reshape(len(grid), -1)  # [n, 64]
    bits = lowest > np.median(lowest, axis=1, keepdims=True)
    packed: HashArray = np.packbits(bits, axis=1).view(">u8")[:, 0].astype(np.uint64)
    return packed


@lru_cache(maxsize=1)
def _cosines() -> FloatArray:
    """The first 8 rows of the cosine transform (type II) of 32 values."""
    places, frequencies = np.arange(_GRID_PIXELS), np.arange(_FREQUENCIES)[:, None]
    return np.cos(np.pi * (2 * places + 1) * frequencies / (2 * _GRID_PIXELS)).astype(np.float32)


def _stretched(values: FloatArray) -> npt.NDArray[np.uint8]:
    low, high = values.min(axis=(1, 2), keepdims=True), values.max(axis=(1, 2), keepdims=True)
    stretched: npt.NDArray[np.uint8] = np.rint((values - low) * (255 / np.maximum(high - low, 1e-6))).astype(np.uint8)
    return stretched


def normalised(thumbnails: npt.NDArray[np.uint8]) -> FloatArray:
    """Thumbnails as vectors of mean 0 and length 1, float32 [n, 256]: their products are correlations. A flat one is all zeros."""
    vectors = thumbnails.reshape(len(thumbnails), -1).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    result: FloatArray = vectors / np.maximum(lengths, 1e-6)
    return result
