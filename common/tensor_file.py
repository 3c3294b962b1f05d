# SPDX-License-Identifier: Apache-2.0
"""A safetensors file in parts: its head, then each tensor's bytes where they lie.

The library's own `save` copies every tensor twice to have the file in one piece; who writes it and takes its digest needs no such piece.
Bytes are those that `save` writes (without metadata, whose order it leaves open); reading is the library's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

_KINDS: Final = ("?", "u1", "i1", "i2", "u2", "f2", "i4", "u4", "f4", "f8", "i8", "u8")
"""In the order of the format, which is that of the tensors in a file, the last first; a kind's name is its letter and its bits."""
_ALIGNMENT_BYTES: Final = 8


def tensor_parts(tensors: Mapping[str, npt.NDArray[Any]], metadata: Mapping[str, str] | None = None) -> list[bytes | memoryview]:
    """The file of these tensors, to be written one part after the other; the first part is the whole head.

    A part shares memory with its tensor if that lies in C order. Raises TypeError for numbers that the format has no name for here.
    """
    ordered = sorted(tensors.items(), key=lambda one: (-_rank(one[1].dtype), one[0]))
    values = [np.asarray(value, order="C", dtype=value.dtype.newbyteorder("<")) for _, value in ordered]
    head: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    end = 0
    for name, value in zip((name for name, _ in ordered), values, strict=True):
        start, end = end, end + value.nbytes
        head[name] = {"dtype": _name_of(value.dtype), "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(head, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT_BYTES)
    return [len(text).to_bytes(8, "little") + text, *(value.reshape(-1).view(np.uint8).data for value in values if value.nbytes)]


def _rank(dtype: np.dtype[Any]) -> int:
    code = "?" if dtype.kind == "b" else f"{dtype.kind}{dtype.itemsize}"
    if code not in _KINDS:
        raise TypeError(f"safetensors: no name for {dtype}")
    return _KINDS.index(code)


def _name_of(dtype: np.dtype[Any]) -> str:
    return "BOOL" if dtype.kind == "b" else f"{dtype.kind.upper()}{8 * dtype.itemsize}"
