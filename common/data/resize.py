# SPDX-License-Identifier: Apache-2.0
"""Bringing square images to the study's size.

Smaller by a whole factor is the exact mean over blocks; smaller by any other factor is Pillow's BOX filter (the mean of the pixels
whose centres lie in the new one). Enlarging adds no information: up to a factor of `MOST_ENLARGED` it is done bilinearly, so that
28-pixel sets fit a 32-pixel model, and `store` says so in the log; beyond that it is refused. Images that are not square are refused,
because squeezing them would change anatomy.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from common.data.cohort import ByteArray

MOST_ENLARGED = 2


def size_problem(height: int, width: int, size: int) -> str | None:
    """Why images of `height` x `width` pixels cannot be brought to `size`, with the remedy; None when they can."""
    if height != width:
        return f"images are {height} x {width} pixels; crop or pad them to a square first"
    if height * MOST_ENLARGED < size:
        return f"images are {height} pixels wide, and data.image_size asks for {size}; set data.image_size: {height}"
    return None


def to_bytes(images: npt.NDArray[Any]) -> ByteArray:
    """uint16 on full scale as uint8 on full scale, halves up; uint8 as it is."""
    if images.dtype == np.uint8:
        return images
    return ((images.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def resize(images: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """Bring uint8 images [N, S, S] or [N, S, S, 3] to [N, size, size(, 3)]; the input itself when it already fits.

    uint16 images are only taken where S is a whole multiple of `size`.
    """
    source = images.shape[1]
    if source == size:
        return images
    if source % size == 0:
        return _block_mean(images, source // size)
    return np.stack([_resample(image, size) for image in images])


def _block_mean(images: npt.NDArray[Any], factor: int) -> npt.NDArray[Any]:
    """Mean over blocks of `factor` x `factor` pixels, halves rounded up, in integers that cannot overflow."""
    exact = np.uint32 if factor < 255 else np.uint64  # 256 * 256 * 65535 is just below 2**32
    total = np.zeros((len(images), images.shape[1] // factor, images.shape[2] // factor, *images.shape[3:]), dtype=exact)
    for i in range(factor):
        for j in range(factor):
            total += images[:, i::factor, j::factor]
    return ((total + factor * factor // 2) // (factor * factor)).astype(images.dtype)


def _resample(image: ByteArray, size: int) -> ByteArray:
    from PIL import Image

    method = Image.Resampling.BOX if size < len(image) else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(image).resize((size, size), method))
