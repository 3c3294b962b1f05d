# SPDX-License-Identifier: Apache-2.0
"""What a decoder of image files returns, and the few things that every decoder shares.

A decoder turns one file into one `Decoded` for each frame or slice, one at a time, so memory holds one frame whatever the file holds.
Pixels are on full scale: 0 is black, the largest number of the dtype is white, whatever the file's number of bits, window and polarity
were. A file that cannot be decoded raises DataError whose one problem reads `reason; remedy`. It names neither the file (the caller
knows it) nor a value of the header, so it can be written down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from common.errors import DataError

Pixels = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
PixelType = type[np.uint8] | type[np.uint16]
BurnedIn = Literal["yes", "no", "unknown"]
Axis = Literal["axial", "coronal", "sagittal"]

MOST_PIXELS = 1 << 26
"""Largest height x width of one frame (8192 x 8192); a header that says more is refused before anything is decoded."""
MOST_VOLUME_BYTES = 1 << 31
"""Largest volume, or inflated data set, that is held in memory at once (2 GiB)."""
COPY_AGAIN = "copy the file again from where it comes from, or take it out"
_FEWEST_LEVELS = 16  # of 256 grey levels; an image that uses fewer is hardly visible at 8 bits


@dataclass(frozen=True)
class Window:
    """A public window, in the units of the image (CT: Hounsfield): centre - width/2 is black, centre + width/2 is white."""

    centre: float
    width: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.centre) and math.isfinite(self.width) and self.width > 0):
            raise DataError(f"window {self.centre:g},{self.width:g}: centre and width have to be numbers, the width above 0")


@dataclass(frozen=True)
class Slices:
    """Which 2-D images a NIfTI volume becomes: every slice along `axis`, or only the one in the middle."""

    axis: Axis = "axial"
    middle_only: bool = False


@dataclass(frozen=True)
class Facts:
    """What a file says about one image.

    `height` and `width` in pixels, `bits_stored` and `photometric` are those of the file. `patient_id` is the header's (DICOM); it is
    secret and must become a pseudonym before anything is written. `identity_tags` are names of header fields that hold something, never
    what they hold. `inverted` says whether the smallest stored value was white and was turned around; None when the format does not know
    polarity. `remarks` are whole sentences without values of the header, equal for equal cases, so that they can be counted.
    """

    height: int
    width: int
    bits_stored: int
    photometric: str
    patient_id: str | None = None
    identity_tags: tuple[str, ...] = ()
    burned_in: BurnedIn = "unknown"
    inverted: bool | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Decoded:
    """One image: `pixels` uint8 or uint16 [H, W], or uint8 [H, W, 3] (RGB); `frame` is its number in the file, from 0."""

    pixels: Pixels
    frame: int
    facts: Facts

    @property
    def constant(self) -> bool:
        """Whether all pixels (of each channel) have one value: the image shows nothing."""
        return bool((self.pixels == self.pixels[:1, :1]).all())


def refusal(reason: str, remedy: str) -> DataError:
    """The one error of this package."""
    return DataError(f"{reason}; {remedy}")


def damage(error: BaseException, library: str) -> DataError:
    """The refusal for what a library raised on a file: no memory, a file that cannot be read, else damage. Its text is not repeated."""
    if isinstance(error, MemoryError):
        return refusal("needs more memory than there is", "take the file out, or run with fewer --workers")
    if isinstance(error, OSError) and error.errno is not None:
        return refusal(f"cannot be read ({error.strerror})", "check the file, its disk and its permissions")
    return refusal(f"is damaged or incomplete ({type(error).__name__} in {library})", COPY_AGAIN)


def check_size(height: int, width: int) -> None:
    """Raise DataError when a header's size is nothing or more than `MOST_PIXELS`."""
    if height < 1 or width < 1:
        raise refusal("the header gives the image no height or no width", "export the file again")
    if height * width > MOST_PIXELS:
        raise refusal(
            f"the header says {height} x {width} pixels, more than the limit of {MOST_PIXELS}", "take the file out, or export it smaller"
        )


def full_scale(values: npt.NDArray[Any], low: float, high: float, dtype: PixelType) -> Pixels:
    """Map [low, high] to 0 … the largest number of `dtype`, halves up; what lies outside is clipped, NaN becomes black."""
    top = float(np.iinfo(dtype).max)
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = np.clip((values.astype(np.float64) - low) * top / (high - low), 0.0, top)
    rounded = np.floor(np.nan_to_num(scaled, copy=False, nan=0.0) + 0.5)
    return rounded.astype(np.uint8) if dtype is np.uint8 else rounded.astype(np.uint16)


def uses_few_levels(pixels: Pixels) -> bool:
    """Whether the image spans less than `_FEWEST_LEVELS` of 256 grey levels without being constant."""
    span = int(pixels.max()) - int(pixels.min())
    return 0 < span < _FEWEST_LEVELS * (np.iinfo(pixels.dtype).max // 255)
