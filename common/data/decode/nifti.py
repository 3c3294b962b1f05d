# SPDX-License-Identifier: Apache-2.0
"""NIfTI volumes, through nibabel: each slice along an axis, or the middle one, as a grey image of one patient.

The volume is turned to its nearest anatomical orientation (RAS+); slices are shown as in DICOM: the patient's right on the left of axial
and coronal images, front (axial), head (coronal, sagittal) on top, front on the left of sagittal ones. Slices are numbered from foot to
head, from back to front, from the patient's left to right. Voxels that are not square are not stretched, which a remark says. Intensities
have no unit: a given window counts, else the header's `cal_min` and `cal_max`, else the full range of a type of up to 16 bits.
"""

from __future__ import annotations

import logging
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common.data.decode.decoded import (
    COPY_AGAIN,
    MOST_VOLUME_BYTES,
    Decoded,
    Facts,
    Slices,
    Window,
    check_size,
    damage,
    full_scale,
    refusal,
    uses_few_levels,
)
from common.data.decode.grey import FEW_LEVELS, FULL_RANGE

NO_ORIENTATION = "the header gives no orientation: axes were taken as they are stored"
NOT_SQUARE = "voxels are not square in this plane: the image looks stretched"
_AXES = {"sagittal": 0, "coronal": 1, "axial": 2}
_IN_PLANE = {"sagittal": (1, 2), "coronal": (0, 2), "axial": (0, 1)}
_SQUARE_TOLERANCE = 0.02
_DAMAGED = (
    OSError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    ArithmeticError,
    MemoryError,
    struct.error,
    zlib.error,
)


def decode_nifti(path: Path, window: Window | None, slices: Slices) -> Iterator[Decoded]:
    """The slices that `slices` asks for; `frame` is the number of the slice. Raises DataError (`reason; remedy`)."""
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    try:
        with _quiet():
            volume = _Volume(path, window, slices)
            stored = volume.stored()
    except (*_DAMAGED, ImageFileError, HeaderDataError) as error:
        raise damage(error, "nibabel") from None
    for number in volume.numbers(stored.shape[volume.axis]):
        yield volume.decoded(stored, number)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep nibabel's warnings and log lines, which repeat what is in the header, off the screen."""
    log = logging.getLogger("nibabel.global")
    was_disabled, log.disabled = log.disabled, True
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = was_disabled


class _Volume:
    """A volume's header, checked, and the way from its stored values to images."""

    def __init__(self, path: Path, window: Window | None, slices: Slices) -> None:
        import nibabel

        image: Any = nibabel.load(path)
        self._image = image
        self._slices = slices
        self._dtype: np.dtype[Any] = image.get_data_dtype()
        self._check(image.shape)
        self.axis = _AXES[slices.axis]
        self._slope, self._intercept = _scaling(image)
        self._low, self._high, self._remarks = self._range(window)
        if int(image.header["qform_code"]) == 0 and int(image.header["sform_code"]) == 0:
            self._remarks += (NO_ORIENTATION,)
        if _is_stretched(image.affine, _IN_PLANE[slices.axis]):
            self._remarks += (NOT_SQUARE,)
        self._identity_tags = _identity_tags(image)

    def _check(self, shape: tuple[int, ...]) -> None:
        """Refuse what is no single grey volume, or too large to hold."""
        if len(shape) < 2 or any(length != 1 for length in shape[3:]):
            raise refusal("holds a series of volumes, or a single line", "save the volume that counts as a file of its own")
        if self._dtype.kind not in "iuf":
            raise refusal("holds colours or complex numbers", "save it as grey values")
        if math.prod(shape) * self._dtype.itemsize > MOST_VOLUME_BYTES:
            raise refusal(f"the header says a volume of more than {MOST_VOLUME_BYTES} bytes", "take it out, or save a part of it")
        if math.prod(shape) < 1:
            raise refusal("the header gives the volume no extent", COPY_AGAIN)

    def _range(self, window: Window | None) -> tuple[float, float, tuple[str, ...]]:
        """The intensities that become black and white."""
        if window is not None:
            return window.centre - window.width / 2, window.centre + window.width / 2, ()
        low, high = float(self._image.header["cal_min"]), float(self._image.header["cal_max"])
        if math.isfinite(low) and math.isfinite(high) and high > low:
            return low, high, ()
        if self._dtype.kind == "f" or self._dtype.itemsize > 2:
            raise refusal("its intensities have no known range", "give a window: --window CENTRE,WIDTH")
        info = np.iinfo(self._dtype)
        low, high = sorted(float(end) * self._slope + self._intercept for end in (info.min, info.max))
        return low, high, (FULL_RANGE,)

    def stored(self) -> npt.NDArray[Any]:
        """Stored values [X, Y, Z] in RAS+ order: the first axis goes to the patient's right, the second to the front, the third up."""
        from nibabel import orientations

        turn: Any = orientations.apply_orientation
        values = np.asanyarray(self._image.dataobj.get_unscaled())
        values = values.reshape((*values.shape, 1)[:3] if values.ndim == 2 else values.shape[:3])
        turned: npt.NDArray[Any] = turn(values, _orientation(self._image.affine))
        return turned

    def numbers(self, count: int) -> range:
        """The slices to take."""
        return range(count // 2, count // 2 + 1) if self._slices.middle_only else range(count)

    def decoded(self, stored: npt.NDArray[Any], number: int) -> Decoded:
        """Slice `number` along the axis, rows from top to bottom."""
        plane = np.take(stored, number, axis=self.axis)[::-1, ::-1].T
        height, width = plane.shape
        check_size(height, width)
        values = plane.astype(np.float64) * self._slope + self._intercept
        pixels = full_scale(values, self._low, self._high, np.uint8 if self._dtype.itemsize == 1 else np.uint16)
        remarks = self._remarks + ((FEW_LEVELS,) if uses_few_levels(pixels) else ())
        bits = 8 * self._dtype.itemsize
        return Decoded(pixels, number, Facts(height, width, bits, "NIFTI", identity_tags=self._identity_tags, remarks=remarks))


def _orientation(affine: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """For each stored axis: which axis of the world it follows (0 right, 1 front, 2 up), and whether backwards."""
    from nibabel import orientations

    find: Any = orientations.io_orientation
    found: npt.NDArray[Any] = find(affine)
    return found


def _is_stretched(affine: npt.NDArray[Any], plane: tuple[int, int]) -> bool:
    """Whether voxels have different sides along the two axes of the world in `plane`."""
    sizes = np.sqrt((affine[:3, :3] ** 2).sum(axis=0))
    along = {int(world): float(size) for world, size in zip(_orientation(affine)[:, 0], sizes, strict=True)}
    first, second = (along[axis] for axis in plane)
    return abs(first - second) > _SQUARE_TOLERANCE * max(first, second)


def _scaling(image: Any) -> tuple[float, float]:
    """Slope and intercept of the stored values; 1 and 0 when the file gives none. nibabel empties them in the header when it loads."""
    return float(image.dataobj.slope), float(image.dataobj.inter)


def _identity_tags(image: Any) -> tuple[str, ...]:
    """Names of text fields of the header that are not empty and may identify; `descrip` only when it looks like a date, name or number."""
    from common.data.decode.identity import name_findings

    fields = [name for name in ("db_name", "aux_file", "descrip") if name in image.header]  # NIfTI-2 has no db_name
    texts = {name: bytes(image.header[name].tobytes()).strip(b"\0 ").decode("latin-1") for name in fields}
    found = {f"NIfTI.{name}" for name in fields if name != "descrip" and texts[name]}
    if name_findings(texts["descrip"]):
        found.add("NIfTI.descrip")
    if len(image.header.extensions):
        found.add("NIfTI.extension")
    return tuple(sorted(found))
