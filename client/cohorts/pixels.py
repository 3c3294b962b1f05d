# SPDX-License-Identifier: Apache-2.0
"""What a decoded image becomes in a cohort: square, at most S pixels wide, one number of bits for all.

to a square   the image in the middle, padded with 0 (black); nothing is cropped or squeezed, so anatomy keeps its shape
smaller       the mean over each new pixel (`common.data.resize` says how); never enlarged here
bits          0…255 or 0…65535, both on full scale: 16 bits become 8 by rounding, 8 become 16 by a factor of 257
colour        stays as three channels; where all three are equal the image is stored as grey
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from common.data.resize import resize, to_bytes
from common.errors import DataError

Bits = Literal[8, 16]
AnyPixels = npt.NDArray[Any]
MOST_SIDE = 1 << 14
"""Longest side in pixels of an image that is padded to a square; a longer one is refused."""
_TO_16_BITS = 257


def stored_pixels(pixels: AnyPixels, size_pixels: int, bits: Bits) -> AnyPixels:
    """Decoded uint8 or uint16 [H, W] or [H, W, 3] as [side, side] or [side, side, 3] of `bits`, side at most `size_pixels`.

    Raises DataError (`reason; remedy`) for an image with a side above `MOST_SIDE`.
    """
    if max(pixels.shape[:2]) > MOST_SIDE:
        raise DataError(f"a side is longer than {MOST_SIDE:,} pixels; take the file out, or export it smaller")
    square = padded(as_grey(pixels))
    if square.shape[0] > size_pixels:
        square = shrink(square, size_pixels)
    return in_bits(square, bits)


def as_grey(pixels: AnyPixels) -> AnyPixels:
    """One channel where three are equal, else the input."""
    if pixels.ndim == 2:
        return pixels
    first, second, third = (pixels[..., channel] for channel in range(3))
    return np.ascontiguousarray(first) if np.array_equal(first, second) and np.array_equal(first, third) else pixels


def padded(pixels: AnyPixels) -> AnyPixels:
    """The image in the middle of a black square; the odd pixel goes below or to the right."""
    height, width = pixels.shape[:2]
    if height == width:
        return pixels
    side = max(height, width)
    square = np.zeros((side, side, *pixels.shape[2:]), dtype=pixels.dtype)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def shrink(square: AnyPixels, size_pixels: int) -> AnyPixels:
    """Down to `size_pixels` by the mean over each new pixel; uint8 in its own numbers, uint16 in float32 and rounded."""
    if square.dtype == np.uint8 or len(square) % size_pixels == 0:
        return np.asarray(resize(square[None], size_pixels)[0])
    from PIL import Image

    small = Image.fromarray(square.astype(np.float32)).resize((size_pixels, size_pixels), Image.Resampling.BOX)
    return np.floor(np.asarray(small) + 0.5).astype(np.uint16)


def enlarge(square: AnyPixels, size_pixels: int) -> AnyPixels:
    """Up to `size_pixels` bilinearly, in the same bits; for an image that is a little smaller than the others of its cohort."""
    from PIL import Image

    shape, method = (size_pixels, size_pixels), Image.Resampling.BILINEAR
    if square.dtype == np.uint8:
        return np.asarray(Image.fromarray(square).resize(shape, method))
    planes = [square] if square.ndim == 2 else [square[..., channel] for channel in range(square.shape[2])]
    large = [np.asarray(Image.fromarray(plane.astype(np.float32)).resize(shape, method)) for plane in planes]
    return np.floor(np.stack(large, axis=-1) + 0.5).astype(np.uint16).reshape(size_pixels, size_pixels, *square.shape[2:])


def in_bits(pixels: AnyPixels, bits: Bits) -> AnyPixels:
    """Full scale in, full scale out."""
    if bits == 8:
        return to_bytes(pixels)
    return pixels if pixels.dtype == np.uint16 else pixels.astype(np.uint16) * np.uint16(_TO_16_BITS)
