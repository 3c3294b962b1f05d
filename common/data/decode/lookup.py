# SPDX-License-Identifier: Apache-2.0
"""Look-up tables of DICOM: modality LUT, VOI LUT (PS3.3 C.11.1, C.11.2) and palette (C.7.6.3.1.5).

Read here rather than by pydicom 3, whose helpers take a palette of a big endian file in the wrong byte order, and wrap the index of a
VOI LUT of 8 bits that has more than 256 entries; only segmented palettes are expanded by it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from common.data.decode.decoded import refusal

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_MOST_ENTRIES = 1 << 16


@dataclass(frozen=True)
class LookUp:
    """`entries` uint16 [n]; `first` is the stored value that means entry 0; an entry has `bits` bits."""

    entries: npt.NDArray[np.uint16]
    first: int
    bits: int

    @property
    def top(self) -> int:
        """The largest number that an entry can be."""
        return (1 << self.bits) - 1

    def of(self, values: npt.NDArray[Any]) -> npt.NDArray[np.uint16]:
        """The entry of each value; below the first the first one, beyond the last the last one."""
        index = np.clip(np.rint(values).astype(np.int64) - self.first, 0, len(self.entries) - 1)
        found: npt.NDArray[np.uint16] = self.entries[index]
        return found


def is_little_endian(dataset: Dataset) -> bool:
    """The byte order of what pydicom leaves as bytes in `dataset`."""
    return dataset.file_meta.TransferSyntaxUID.is_little_endian is not False


def look_up_table(item: Dataset, descriptor: str, data: str, *, little_endian: bool) -> LookUp:
    """The table in `item`. Raises DataError when descriptor and data do not fit."""
    described = item.get(descriptor)
    content = item.get(data)
    if described is None or len(described) != 3 or content is None:
        raise _broken()
    count, first, bits = (int(number) for number in described)
    count = count or _MOST_ENTRIES
    entries = _entries(content, count, little_endian)
    if len(entries) < count or not 1 <= bits <= 16:
        raise _broken()
    return LookUp(entries[:count], first, bits)


def _entries(content: Any, count: int, little_endian: bool) -> npt.NDArray[np.uint16]:
    """uint16 entries of an element that pydicom gives as bytes (8 or 16 bits an entry), one number or numbers."""
    if not isinstance(content, bytes):
        return np.atleast_1d(np.asarray(content, dtype=np.int64)).astype(np.uint16)
    words = np.frombuffer(content, "<u2" if little_endian else ">u2", count=len(content) // 2)
    if len(content) >= 2 * count:
        return words.astype(np.uint16)
    return words.astype("<u2").view(np.uint8).astype(np.uint16)  # 8 bits an entry, two in a word, the first in the lower half


def palette(dataset: Dataset, *, little_endian: bool) -> tuple[LookUp, LookUp, LookUp]:
    """Red, green and blue table. Raises DataError when there is none."""
    tables = [_palette_table(dataset, colour, little_endian) for colour in ("Red", "Green", "Blue")]
    return tables[0], tables[1], tables[2]


def _palette_table(dataset: Dataset, colour: str, little_endian: bool) -> LookUp:
    name = f"{colour}PaletteColorLookupTable"
    if f"Segmented{name}Data" not in dataset:
        return look_up_table(dataset, f"{name}Descriptor", f"{name}Data", little_endian=little_endian)
    from pydicom.pixels.processing import apply_color_lut

    count, first, bits = (int(number) for number in dataset[f"{name}Descriptor"].value)
    every_value = np.arange(first, first + (count or _MOST_ENTRIES), dtype=np.int64)
    expanded = apply_color_lut(every_value, dataset)[:, ("Red", "Green", "Blue").index(colour)]
    return LookUp(expanded.astype(np.uint16), first, bits)


def every_value(dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """All values of an integer dtype of 8 or 16 bits, in the order of their bit patterns: index it with an unsigned view."""
    bits = 8 * dtype.itemsize
    return np.arange(1 << bits, dtype=np.uint32).astype(f"u{dtype.itemsize}").view(dtype.newbyteorder("="))


def bit_patterns(stored: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Stored values of 8 or 16 bits as indices into what was made from `every_value`."""
    native = np.ascontiguousarray(stored, dtype=stored.dtype.newbyteorder("="))
    return native.view(f"u{stored.dtype.itemsize}")


def rgb_table(tables: tuple[LookUp, LookUp, LookUp], dtype: np.dtype[Any]) -> npt.NDArray[np.uint8]:
    """RGB of 8 bits for `every_value` of `dtype`, uint8 [256 or 65536, 3].

    Of entries of 16 bits the upper 8 are taken, unless all entries are below 256: then they were meant as 8 bits.
    """
    shift = 8 if max(int(table.entries.max()) for table in tables) > 255 else 0
    return np.stack([(table.of(every_value(dtype)) >> shift).astype(np.uint8) for table in tables], axis=-1)


def _broken() -> Exception:
    return refusal("a look-up table in the header does not fit its description", "export the file again")
