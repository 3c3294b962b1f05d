# SPDX-License-Identifier: Apache-2.0
"""Few objects on the way: Flower makes one of each record and two of each tensor, and each object is a call of its own, here and there.

    small content    one record of one value: the bytes of all records by Flower's own schema
    large content    the tensors of each record as one run of bytes: the length of a header (8 bytes), the header (JSON: name, dtype,
                     shape, format and size of each tensor, in order), then the tensors' bytes as they were. It travels in pieces of
                     16 MiB, each a record of one value (`pieces`); what several sites get alike is the same objects for all of them.
                     All other records together are one more, as in small content

What is not packed passes as it is. Packed content is unpacked once: what it holds is not looked into again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from google.protobuf.message import DecodeError

from common.errors import ProtocolError
from common.flower_compat.pieces import NAME, Piece, Views, pieces_of, view_of

PARCEL: Final = "wardround.parcel.1"
PIECES: Final = "wardround.piece.1"
"""A piece's record is called `PIECES/number/name of the record of tensors`, counted from 0."""
SMALL_BYTES: Final = 1 << 20
"""Tensors that together have no more bytes than this go in a parcel."""
MAX_TENSORS: Final = 100_000
MAX_HEADER_BYTES: Final = 1 << 24
_LENGTH_BYTES: Final = 8


Record = ArrayRecord | ConfigRecord | MetricRecord


def packed(contents: Iterable[RecordDict]) -> list[RecordDict]:
    """The same records in few objects; a record of large tensors that several contents share stays shared."""
    known: dict[int, list[Piece]] = {}

    def pack(record: ArrayRecord) -> list[Piece]:
        if id(record) not in known:
            known[id(record)] = _pack(record)
        return known[id(record)]

    return [_packed(content, pack) for content in contents]


def unpacked(content: RecordDict) -> RecordDict:
    """What `packed` was given. Raises ProtocolError."""
    records: dict[str, Record] = {}
    pieces: defaultdict[str, dict[int, memoryview]] = defaultdict(dict)
    for name, record in content.items():
        if name == PARCEL:
            _add(records, _open(_bytes_of(record)))
        elif name.startswith(f"{PIECES}/"):
            number, owner = _place(name)
            pieces[owner][number] = _bytes_of(record)
        else:
            _add(records, {name: record})
    _add(records, {name: _unpack(_in_order(views)) for name, views in pieces.items()})
    return RecordDict(records)


def _add(records: dict[str, Record], more: Mapping[str, Record]) -> None:
    if records.keys() & more.keys():
        raise ProtocolError("packed tensors: two records of one name")
    records.update(more)


def _bytes_of(record: Record) -> memoryview:
    view = view_of(record) if isinstance(record, ConfigRecord) else None
    if view is None:
        raise ProtocolError("packed tensors: a parcel or a piece holds one value, and that is bytes")
    return view


def _place(name: str) -> tuple[int, str]:
    """Number and record of a piece."""
    number, _, owner = name[len(PIECES) + 1 :].partition("/")
    if not (number.isascii() and number.isdigit() and str(int(number[:9])) == number):
        raise ProtocolError("packed tensors: a piece without its number")
    return int(number), owner


def _in_order(views: Mapping[int, memoryview]) -> list[memoryview]:
    if sorted(views) != list(range(len(views))):
        raise ProtocolError("packed tensors: a piece is missing")
    return [views[number] for number in range(len(views))]


def _packed(content: RecordDict, pack: Callable[[ArrayRecord], list[Piece]]) -> RecordDict:
    """Content that is packed already passes as it is: its pieces are not to be read as records."""
    if any(name == PARCEL or name.startswith(f"{PIECES}/") for name in content):
        return content
    return _parcel(content) if _tensor_bytes(content) <= SMALL_BYTES else _apart(content, pack)


def _apart(content: RecordDict, pack: Callable[[ArrayRecord], list[Piece]]) -> RecordDict:
    """The tensors of each record in pieces, all other records in one parcel."""
    tensors = {name: pack(one) for name, one in content.items() if isinstance(one, ArrayRecord)}
    others = RecordDict({name: one for name, one in content.items() if name not in tensors})
    pieces = {f"{PIECES}/{number}/{name}": piece for name, all_of_it in tensors.items() for number, piece in enumerate(all_of_it)}
    return RecordDict({**_parcel(others), **pieces})


def _tensor_bytes(content: RecordDict) -> int:
    return sum(len(array.data) for record in content.values() if isinstance(record, ArrayRecord) for array in record.values())


def _parcel(content: RecordDict) -> RecordDict:
    return RecordDict({PARCEL: ConfigRecord({NAME: bytes(recorddict_to_proto(content).SerializeToString())})})


def _open(parcel: memoryview) -> RecordDict:
    try:
        return recorddict_from_proto(ProtoRecordDict.FromString(bytes(parcel)))
    except (DecodeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProtocolError(f"packed tensors: the parcel cannot be read ({type(error).__name__})") from error


def _pack(record: ArrayRecord) -> list[Piece]:
    facts = [[name, array.dtype, list(array.shape), array.stype, len(array.data)] for name, array in record.items()]
    header = json.dumps(facts, separators=(",", ":")).encode()
    return pieces_of([len(header).to_bytes(_LENGTH_BYTES, "big"), header, *(array.data for array in record.values())])


def _unpack(views: Sequence[memoryview]) -> ArrayRecord:
    content = Views(views)
    try:
        size = int.from_bytes(content.take(_LENGTH_BYTES), "big")
        entries = _entries(content.take(size if 0 < size <= MAX_HEADER_BYTES else -1))
    except ValueError as error:
        raise ProtocolError("packed tensors: the header does not fit") from error
    if sum(entry[4] for entry in entries) != content.left:
        raise ProtocolError("packed tensors: the header does not fit the bytes")
    return ArrayRecord({name: Array(dtype, shape, stype, content.take(length)) for name, dtype, shape, stype, length in entries})


Entry = tuple[str, str, tuple[int, ...], str, int]


def _entries(header: bytes) -> list[Entry]:
    try:
        entries = [_entry(*one) for one in json.loads(header)]
    except (ValueError, TypeError, RecursionError) as error:
        raise ProtocolError(f"packed tensors: the header cannot be read ({type(error).__name__})") from error
    if len(entries) > MAX_TENSORS or len({entry[0] for entry in entries}) != len(entries):
        raise ProtocolError("packed tensors: too many, or two of one name")
    return entries


def _entry(name: object, dtype: object, shape: object, stype: object, length: object) -> Entry:
    if not (isinstance(name, str) and isinstance(dtype, str) and isinstance(stype, str) and isinstance(shape, list)):
        raise TypeError("text expected")
    if type(length) is not int or length < 0 or not all(type(size) is int and size >= 0 for size in shape):
        raise TypeError("sizes expected")
    return name, dtype, tuple(shape), stype, length
