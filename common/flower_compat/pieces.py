# SPDX-License-Identifier: Apache-2.0
"""A long run of bytes as Flower's records, without the copies in between.

Flower joins the parts of an array, cuts the whole into chunks and copies each chunk for its digest and again for its way; at the other end
it copies each chunk, joins them, and copies the whole: with protobuf's own, seven copies of a model at each end. And an array in a record
is two objects more, each a call. Here a piece is a ConfigRecord of one value, whose object is put together once; what arrives stays
in the object that it came in. On the wire it is a record as Flower writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from flwr.app import ConfigRecord
from flwr.proto.recorddict_pb2 import ConfigRecord as ProtoConfigRecord
from flwr.proto.recorddict_pb2 import ConfigRecordValue
from flwr.supercore.inflatable.inflatable_object import InflatableObject, get_object_id
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from typing_extensions import override

from common.flower_compat.shallow import field_head

PIECE_BYTES: Final = 1 << 24
NAME: Final = "packed"
_KIND: Final = "ConfigRecord"
_HEAD_END: Final = b"\x00"
_MOST_HEAD_BYTES: Final = 48


class Piece(ConfigRecord):
    """A record of one value under `NAME`, as the object that it travels in; `data` is the value, a view of that object."""

    def __init__(self, content: bytes | memoryview, data: memoryview, identifier: str) -> None:
        super().__init__()
        vars(self).update(_content=content, data=data, _id=identifier)

    data: memoryview

    @override
    def deflate(self) -> bytes:
        """The object."""
        return bytes(vars(self)["_content"])

    @property
    @override
    def object_id(self) -> str:
        """Its digest: a piece does not change."""
        return str(vars(self)["_id"])


def pieces_of(parts: Iterable[bytes]) -> list[Piece]:
    """The parts, one after the other, in pieces of `PIECE_BYTES`."""
    return [_piece(views) for views in _cut(parts, PIECE_BYTES)]


def view_of(record: ConfigRecord) -> memoryview | None:
    """The value of a record that is a piece, or could be one; None if it is neither."""
    if isinstance(record, Piece):
        return record.data
    value = record.get(NAME)
    return memoryview(value) if len(record) == 1 and isinstance(value, bytes) else None


def inflated(object_id: str, contents: Mapping[str, bytes | memoryview]) -> InflatableObject:
    """Flower's object from the objects it is made of; pieces stay in theirs.

    Raises what Flower raises for contents that do not fit: KeyError, ValueError, TypeError and others.
    """
    pieces: dict[str, InflatableObject] = {}
    others: dict[str, bytes] = {}
    for identifier, content in contents.items():
        piece = _arrived(identifier, memoryview(content))
        if piece is None:
            others[identifier] = bytes(content)
        else:
            pieces[identifier] = piece
    return inflate_object_from_contents(object_id, others, objects=pieces)


def _piece(views: Sequence[memoryview]) -> Piece:
    size_bytes = sum(len(view) for view in views)
    head = _head(size_bytes)
    content = b"".join((head, *views))
    return Piece(content, memoryview(content)[len(head) :], get_object_id(content))


def _arrived(identifier: str, content: memoryview) -> Piece | None:
    """The piece in an object; None if it is something else, or written in another way."""
    for head_bytes in range(min(_MOST_HEAD_BYTES, len(content))):
        head = _head(len(content) - head_bytes)
        if len(head) == head_bytes and content[:head_bytes] == head:
            return Piece(content, content[head_bytes:], identifier)
    return None


def _head(size_bytes: int) -> bytes:
    """What stands before a value of so many bytes in the object of its record, as Flower writes both."""
    value = field_head(ConfigRecordValue, "bytes", size_bytes)
    item = field_head(ProtoConfigRecord.Item, "key", len(NAME)) + NAME.encode()
    item += field_head(ProtoConfigRecord.Item, "value", len(value) + size_bytes) + value
    record = field_head(ProtoConfigRecord, "items", len(item) + size_bytes) + item
    return f"{_KIND}  {len(record) + size_bytes}".encode() + _HEAD_END + record


def _cut(parts: Iterable[bytes], size_bytes: int) -> Iterator[list[memoryview]]:
    """The parts regrouped into groups of so many bytes; the last has what is left."""
    group: list[memoryview] = []
    room = size_bytes
    for part in parts:
        view = memoryview(part)
        while len(view):
            group.append(view[:room])
            room, view = room - len(group[-1]), view[room:]
            if not room:
                yield group
                group, room = [], size_bytes
    if group:
        yield group


class Views:
    """Bytes in several parts, read from the front."""

    def __init__(self, views: Sequence[memoryview]) -> None:
        self._views = list(views)
        self.left = sum(len(view) for view in views)

    def take(self, size_bytes: int) -> bytes:
        """The next bytes. Raises ValueError when there are not so many."""
        if not 0 <= size_bytes <= self.left:
            raise ValueError(f"{size_bytes} bytes asked for, {self.left} left")
        self.left -= size_bytes
        taken: list[memoryview] = []
        while size_bytes:
            first = self._views[0]
            taken.append(first[:size_bytes])
            self._views[0] = first[len(taken[-1]) :]
            size_bytes -= len(taken[-1])
            if not len(self._views[0]):
                del self._views[0]
        return b"".join(taken)
