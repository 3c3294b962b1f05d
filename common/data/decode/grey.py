# SPDX-License-Identifier: Apache-2.0
"""The grey scale of a DICOM frame: from stored values to full scale, in the order of DICOM PS3.3 and PS3.4 N.2.

Stored value -> modality (LUT, or slope and intercept) -> window (the given one, else the file's VOI LUT or first window, else the full
range of *Bits Stored*) -> polarity (MONOCHROME1, or presentation LUT shape INVERSE: turned around). Padding becomes black. All of it is
computed once for each value between the smallest and the largest of a frame, and looked up for each pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from common.data.decode.decoded import Pixels, PixelType, Window, full_scale, refusal, uses_few_levels
from common.data.decode.lookup import LookUp, is_little_endian, look_up_table

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

FloatArray = npt.NDArray[np.float64]

FULL_RANGE = "no window in the file and none was given: the full range of the stored bits was taken"
FEW_LEVELS = "hardly visible: fewer than 16 of 256 grey levels are used; give a window (--window CENTRE,WIDTH)"
SEVERAL_WINDOWS = "the file holds several windows: the first was taken"
BAD_WINDOW = "the file's window has no width: it was not used"
SHAPE_INVERSE = "presentation LUT shape INVERSE in a MONOCHROME2 image: turned around"
_MACROS = {
    "RescaleSlope": "PixelValueTransformationSequence",
    "RescaleIntercept": "PixelValueTransformationSequence",
    "WindowCenter": "FrameVOILUTSequence",
    "WindowWidth": "FrameVOILUTSequence",
    "VOILUTFunction": "FrameVOILUTSequence",
}


@dataclass(frozen=True)
class Band:
    """A window on modality values. `shape` is PS3.3 C.11.2.1: LINEAR, LINEAR_EXACT or SIGMOID."""

    centre: float
    width: float
    shape: str

    def apply(self, values: FloatArray, dtype: PixelType) -> Pixels:
        """`values` on full scale."""
        if self.shape == "SIGMOID":
            with np.errstate(over="ignore"):
                return full_scale(1.0 / (1.0 + np.exp(-4.0 * (values - self.centre) / self.width)), 0.0, 1.0, dtype)
        if self.shape == "LINEAR_EXACT":
            return full_scale(values, self.centre - self.width / 2, self.centre + self.width / 2, dtype)
        middle, half = self.centre - 0.5, (self.width - 1.0) / 2
        if half == 0:
            return full_scale((values > middle).astype(np.float64), 0.0, 1.0, dtype)
        return full_scale(values, middle - half, middle + half, dtype)


@dataclass(frozen=True)
class Rules:
    """What holds for one frame. No `band` means the file's VOI LUT, or the full range."""

    slope: float
    intercept: float
    band: Band | None
    remarks: tuple[str, ...]


class GreyScale:
    """The way from stored values to full scale for the frames of one file."""

    def __init__(self, dataset: Dataset, window: Window | None, bits_stored: int) -> None:
        self._dataset = dataset
        self._window = window
        self._bits_stored = bits_stored
        self._signed = dataset.get("PixelRepresentation", 0) == 1
        self._dtype: PixelType = np.uint8 if bits_stored <= 8 else np.uint16
        self.inverted = dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape", "") == "INVERSE"

    def pixels(self, stored: npt.NDArray[Any], frame: int) -> tuple[Pixels, tuple[str, ...]]:
        """Frame number `frame`, stored values [H, W], on full scale (uint8 up to 8 bits stored, else uint16), and the remarks on it."""
        rules = self._rules(frame)
        if stored.dtype.kind == "f":
            if rules.band is None:
                raise refusal("holds floating point values without a window", "give a window: --window CENTRE,WIDTH")
            shown = self._shown(stored, rules)
        else:
            low, high = int(stored.min()), int(stored.max())
            shown = self._looked_up(stored, low, high, rules) if high - low < stored.size else self._shown(stored, rules)
        return shown, rules.remarks + ((FEW_LEVELS,) if uses_few_levels(shown) else ())

    def _rules(self, frame: int) -> Rules:
        slope, intercept = _number(self._fact("RescaleSlope", frame), 1.0), _number(self._fact("RescaleIntercept", frame), 0.0)
        if not (math.isfinite(slope) and math.isfinite(intercept)) or slope == 0:
            raise refusal("its rescale slope or intercept is zero or no number", "export the file again")
        remarks = (SHAPE_INVERSE,) if self.inverted and self._dataset.PhotometricInterpretation != "MONOCHROME1" else ()
        if self._window is not None:
            return Rules(slope, intercept, Band(self._window.centre, self._window.width, "LINEAR_EXACT"), remarks)
        if self._dataset.get("VOILUTSequence"):
            return Rules(slope, intercept, None, remarks)
        band, more = self._own_window(frame)
        return Rules(slope, intercept, band, remarks + more)

    def _own_window(self, frame: int) -> tuple[Band | None, tuple[str, ...]]:
        """The file's first window for a frame."""
        centres, widths = _numbers(self._fact("WindowCenter", frame)), _numbers(self._fact("WindowWidth", frame))
        if not centres or not widths:
            return None, (FULL_RANGE,)
        shape = str(self._fact("VOILUTFunction", frame) or "LINEAR")
        band = Band(centres[0], widths[0], shape)
        smallest = 1.0 if shape == "LINEAR" else math.ulp(0.0)
        if not (math.isfinite(band.centre) and math.isfinite(band.width)) or band.width < smallest:
            return None, (BAD_WINDOW, FULL_RANGE)
        return band, (SEVERAL_WINDOWS,) if min(len(centres), len(widths)) > 1 else ()

    def _fact(self, keyword: str, frame: int) -> Any:
        """An attribute of a frame: its own functional group, else the shared one, else the data set's. None when it is nowhere."""
        own = self._dataset.get("PerFrameFunctionalGroupsSequence") or ()
        shared = self._dataset.get("SharedFunctionalGroupsSequence") or ()
        for group in (*own[frame : frame + 1], *shared[:1]):
            macro = group.get(_MACROS[keyword])
            if macro and macro[0].get(keyword) is not None:
                return macro[0].get(keyword)
        return self._dataset.get(keyword)

    def _looked_up(self, stored: npt.NDArray[Any], low: int, high: int, rules: Rules) -> Pixels:
        """Each pixel looked up in the table of all values from `low` to `high`."""
        table: Any = self._shown(np.arange(low, high + 1), rules)
        shown: Pixels = np.take(table, np.subtract(stored, low, dtype=np.int64))
        return shown

    def _shown(self, stored: npt.NDArray[Any], rules: Rules) -> Pixels:
        """Stored values on full scale, whatever their shape."""
        modality, voi = self._table("ModalityLUTSequence"), self._table("VOILUTSequence")
        if modality is not None:
            values, low, high = modality.of(stored).astype(np.float64), 0.0, float(modality.top)
        else:
            values = stored.astype(np.float64) * rules.slope + rules.intercept
            low, high = sorted(end * rules.slope + rules.intercept for end in self._stored_range())
        if rules.band is not None:
            shown = rules.band.apply(values, self._dtype)
        elif voi is not None:
            shown = full_scale(voi.of(values), 0.0, float(voi.top), self._dtype)
        else:
            shown = full_scale(values, low, high, self._dtype)
        if self.inverted:
            shown = np.iinfo(self._dtype).max - shown
        return np.where(self._padding(stored), self._dtype(0), shown)

    def _table(self, sequence: str) -> LookUp | None:
        """The first look-up table of a sequence; None when there is none."""
        items = self._dataset.get(sequence)
        if not items:
            return None
        return look_up_table(items[0], "LUTDescriptor", "LUTData", little_endian=is_little_endian(self._dataset))

    def _stored_range(self) -> tuple[float, float]:
        """Smallest and largest value of *Bits Stored*."""
        if self._signed:
            return -float(1 << (self._bits_stored - 1)), float((1 << (self._bits_stored - 1)) - 1)
        return 0.0, float((1 << self._bits_stored) - 1)

    def _padding(self, stored: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Which values are padding: *Pixel Padding Value*, or from there to *Pixel Padding Range Limit*."""
        ends = [self._dataset.get(keyword) for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")]
        numbers = [float(end) for end in ends if isinstance(end, int)]
        if not numbers or ends[0] is None or stored.dtype.kind == "f":
            return np.zeros(stored.shape, np.bool_)
        return (stored >= min(numbers)) & (stored <= max(numbers))


def _numbers(value: Any) -> list[float]:
    """The numbers of an element that holds none, one or several."""
    from pydicom.multival import MultiValue

    values = value if isinstance(value, MultiValue | list | tuple) else [value]
    return [float(entry) for entry in values if entry is not None and str(entry).strip()]


def _number(value: Any, default: float) -> float:
    numbers = _numbers(value)
    return numbers[0] if numbers else default
