# SPDX-License-Identifier: Apache-2.0
"""Flower's records, taken apart with care: one record by name, tensors in and out.

Tensors travel in the .npy format, version 1. A header is checked against the bytes before anything is allocated; what is read is a
read-only view of the message. Which tensors, how many and of which shape is the business of `common.protocol`.
"""

from __future__ import annotations

import io
import math
import tokenize
from collections.abc import Collection, Mapping
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.errors import ProtocolError

AnyRecord = TypeVar("AnyRecord", ArrayRecord, ConfigRecord)


def record_of(records: RecordDict, name: str, kind: type[AnyRecord]) -> AnyRecord | None:
    """The record of that name, if it is of that kind.

    Flower's own views (`config_records`, `array_records`) tie a message into a reference cycle, and every tensor in it would stay in memory
    until the garbage collector happens to run.
    """
    record = records.get(name)
    return record if isinstance(record, kind) else None


def array_record(arrays: Mapping[str, npt.NDArray[np.float32]]) -> ArrayRecord:
    """The tensors as Flower carries them, in C order."""
    return ArrayRecord({name: Array(str(array.dtype), array.shape, "numpy.ndarray", _npy(array)) for name, array in arrays.items()})


def _npy(array: npt.NDArray[np.generic]) -> bytes:
    """The tensor as `numpy.save` writes it, copied once."""
    array = np.asarray(array, order="C")
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, np.lib.format.header_data_from_array_1_0(array))
    return b"".join((head.getvalue(), array.reshape(-1).data))


def name_problems(record: ArrayRecord, names: Collection[str]) -> list[str]:
    """What is missing of `names`, and what is there beside them."""
    missing = sorted(set(names) - set(record))
    extra = sorted(set(record) - set(names))
    return [f"tensor {name} is missing" for name in missing] + [f"tensor {name[:80]} was not asked for" for name in extra]


def size_problems(record: ArrayRecord, most_bytes: int) -> list[str]:
    """Whether the tensors have more bytes than are read."""
    size_bytes = sum(len(array.data) for array in record.values())
    return [f"{size_bytes} bytes of tensors, at most {most_bytes} are read"] if size_bytes > most_bytes else []


def read_array(name: str, array: Array) -> npt.NDArray[np.generic]:
    """Decode one tensor; the result is a read-only view of the message. Raises ProtocolError."""
    if array.stype != "numpy.ndarray":
        raise ProtocolError(f"tensor {name[:80]} cannot be decoded (format {array.stype[:40]!r})")
    buffer = io.BytesIO(array.data)
    try:
        version = np.lib.format.read_magic(buffer)
        shape, column_order, dtype = np.lib.format.read_array_header_1_0(buffer)
    except (ValueError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError) as error:
        raise ProtocolError(f"tensor {name[:80]} cannot be decoded ({type(error).__name__})") from error
    size_bytes = math.prod(shape) * dtype.itemsize
    if version != (1, 0) or column_order or dtype.hasobject or size_bytes != len(array.data) - buffer.tell():
        raise ProtocolError(f"tensor {name[:80]} cannot be decoded (its header does not fit its bytes)")
    return np.frombuffer(array.data, dtype, offset=buffer.tell()).reshape(shape)


def value_problem(name: str, array: npt.NDArray[np.generic], shape: tuple[int, ...] | None) -> str | None:
    """What is wrong with a tensor that must be float32, finite, and of `shape` if that is given; None if nothing is."""
    if array.dtype != np.float32:
        return f"tensor {name[:80]} is {array.dtype}, expected float32"
    if shape is not None and array.shape != tuple(shape):
        return f"tensor {name[:80]} has shape {array.shape}, expected {tuple(shape)}"
    if not np.isfinite(array).all():
        return f"tensor {name[:80]} has values that are not finite"
    return None
