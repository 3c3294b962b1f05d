# SPDX-License-Identifier: Apache-2.0
"""Images block by block, so that a data set that is larger than memory can be checked, changed and stored.

A `LazyImages` stands where an array of images stands in a `RawTable`: the array itself is memory-mapped, and what has to be done to each
image (bits, channels) is done when a block is asked for. Nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from common.data.cohort import IntArray

BLOCK_BYTES = 4_000_000
Step = Callable[[npt.NDArray[Any]], npt.NDArray[np.uint8]]


class LazyImages:
    """uint8 images [N, S, S] or [N, S, S, 3]: rows `rows` of `source`, each block changed by `steps` in turn."""

    def __init__(self, source: npt.NDArray[Any], rows: IntArray, steps: tuple[Step, ...] = (), channels: int | None = None) -> None:
        self._source, self._rows, self._steps = source, rows, steps
        self._channels = channels if channels is not None else (source.shape[3] if source.ndim == 4 else 1)
        self.dtype = np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """[N, S, S] or [N, S, S, 3]."""
        return (len(self._rows), *self._source.shape[1:3], *((self._channels,) if self._channels > 1 else ()))

    @property
    def ndim(self) -> int:
        """3 for grey images, 4 for colour."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    def __getitem__(self, chosen: slice | npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
        """The chosen images, made now."""
        rows = self._rows[chosen]
        adjoining = len(rows) > 0 and bool((np.diff(rows) == 1).all())
        images = np.asarray(self._source[rows[0] : rows[-1] + 1] if adjoining else self._source[rows])
        for step in self._steps:
            images = step(images)
        return images

    def take(self, chosen: npt.NDArray[Any]) -> LazyImages:
        """These images only, by row or by a mask."""
        return LazyImages(self._source, self._rows[chosen], self._steps, self._channels)

    def then(self, step: Step, channels: int) -> LazyImages:
        """The images with one more change, after which they have so many channels."""
        return LazyImages(self._source, self._rows, (*self._steps, step), channels)


Images = npt.NDArray[Any] | LazyImages


def blocks(images: Images) -> Iterator[npt.NDArray[Any]]:
    """All images in turn, at least one and at most about `BLOCK_BYTES` in each block."""
    image_bytes = max(1, int(np.prod(images.shape[1:])) * images.dtype.itemsize)
    rows = max(1, BLOCK_BYTES // image_bytes)
    for start in range(0, len(images), rows):
        yield images[start : start + rows]
