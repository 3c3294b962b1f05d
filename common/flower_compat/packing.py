# SPDX-License-Identifier: Apache-2.0
"""Few objects on the way: Flower makes one of each record and two of each tensor, and each object is a call of its own, here and there.

    small content    one record of one value: the bytes of all records by Flower's own schema
    large content    the tensors of each record as one array of bytes: the length of a header (8 bytes), the header (JSON: name, dtype,
                     shape, format and size of each tensor, in order), then the tensors' bytes as they were; so what several sites get
                     alike is the same object for all of them. Flower cuts it into pieces, here of 16 MiB. All other records together
                     are one more, as in small content

What is not packed passes as it is. Packed content is unpacked once: what it holds is not looked into again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import flwr.app.message.array as flower_array
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from google.protobuf.message import DecodeError

from common.errors import ProtocolError

NAME: Final = "packed"
FORMAT: Final = "wardround.packed.1"
PARCEL: Final = "wardround.parcel.1"
SMALL_BYTES: Final = 1 << 20
"""Tensors that together have no more bytes than this go in a parcel."""
PIECE_BYTES: Final = 1 << 24
MAX_TENSORS: Final = 100_000
MAX_HEADER_BYTES: Final = 1 << 24
_LENGTH_BYTES: Final = 8

vars(flower_array)["FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE"] = PIECE_BYTES  # Flower reads it from the environment, before anybody else runs


def packed(contents: Iterable[RecordDict]) -> list[RecordDict]:
    """The same records in few objects; a record of large tensors that several contents share stays shared."""
    known: dict[int, ArrayRecord] = {}

    def pack(record: ArrayRecord) -> ArrayRecord:
        if id(record) not in known:
            known[id(record)] = _pack(record)
        return known[id(record)]

    return [_parcel(content) if _tensor_bytes(content) <= SMALL_BYTES else _apart(content, pack) for content in contents]


def unpacked(content: RecordDict) -> RecordDict:
    """What `packed` was given. Raises ProtocolError."""
    parcel = content.get(PARCEL)
    if not isinstance(parcel, ConfigRecord):
        return RecordDict(_unpacked_tensors(content))
    records, tensors = _open(parcel), {name: one for name, one in content.items() if name != PARCEL}
    if records.keys() & tensors.keys():
        raise ProtocolError("packed tensors: two records of one name")
    return RecordDict({**records, **_unpacked_tensors(tensors)}) if tensors else records


def _unpacked_tensors(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _unpack(one) if isinstance(one, ArrayRecord) and _is_packed(one) else one for name, one in content.items()}


def _apart(content: RecordDict, pack: Callable[[ArrayRecord], ArrayRecord]) -> RecordDict:
    """Records of tensors by themselves, all others in one parcel; content that looks like one already passes as it is."""
    if PARCEL in content:
        return content
    tensors = {name: pack(one) if len(one) > 1 else one for name, one in content.items() if isinstance(one, ArrayRecord)}
    others = RecordDict({name: one for name, one in content.items() if name not in tensors})
    return RecordDict({**_parcel(others), **tensors})


def _tensor_bytes(content: RecordDict) -> int:
    return sum(len(array.data) for record in content.values() if isinstance(record, ArrayRecord) for array in record.values())


def _parcel(content: RecordDict) -> RecordDict:
    return RecordDict({PARCEL: ConfigRecord({NAME: bytes(recorddict_to_proto(content).SerializeToString())})})


def _open(parcel: ConfigRecord) -> RecordDict:
    content = parcel.get(NAME)
    if len(parcel) != 1 or not isinstance(content, bytes):
        raise ProtocolError("packed tensors: a parcel holds one value, and that is bytes")
    try:
        return recorddict_from_proto(ProtoRecordDict.FromString(content))
    except (DecodeError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ProtocolError(f"packed tensors: the parcel cannot be read ({type(error).__name__})") from error


def _pack(record: ArrayRecord) -> ArrayRecord:
    facts = [[name, array.dtype, list(array.shape), array.stype, len(array.data)] for name, array in record.items()]
    header = json.dumps(facts, separators=(",", ":")).encode()
    content = b"".join((len(header).to_bytes(_LENGTH_BYTES, "big"), header, *(array.data for array in record.values())))
    return ArrayRecord({NAME: Array("uint8", (len(content),), FORMAT, content)})


def _is_packed(record: ArrayRecord) -> bool:
    return list(record) == [NAME] and record[NAME].stype == FORMAT


def _unpack(record: ArrayRecord) -> ArrayRecord:
    content = record[NAME].data
    size = int.from_bytes(content[:_LENGTH_BYTES], "big")
    if not 0 < size <= min(MAX_HEADER_BYTES, len(content) - _LENGTH_BYTES):
        raise ProtocolError("packed tensors: the header does not fit")
    entries = _entries(content[_LENGTH_BYTES : _LENGTH_BYTES + size])
    place, arrays = _LENGTH_BYTES + size, {}
    if sum(entry[4] for entry in entries) != len(content) - place:
        raise ProtocolError("packed tensors: the header does not fit the bytes")
    for name, dtype, shape, stype, length in entries:
        arrays[name] = Array(dtype, shape, stype, content[place : place + length])
        place += length
    return ArrayRecord(arrays)


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
