# SPDX-License-Identifier: Apache-2.0
"""One long field of a protobuf message, without a copy of it: protobuf itself copies a field to read it, and again to write it.

The rest of the message is left to protobuf. What protobuf would read in two ways, or in an old one (a field that comes twice, groups),
is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from google.protobuf.message import Message

from common.errors import ProtocolError

MAX_FIELDS: Final = 64
_VARINT, _FIXED_64, _WITH_LENGTH, _FIXED_32 = 0, 1, 2, 5
_FIXED_BYTES: Final = {_FIXED_64: 8, _FIXED_32: 4}
_MAX_VARINT_BYTES: Final = 10
_MOST_HEAD_BYTES: Final = 2 * _MAX_VARINT_BYTES


def field_head(message: type[Message], name: str, size_bytes: int) -> bytes:
    """What stands before the bytes of a field: its tag and its length."""
    return varint(_number(message, name) << 3 | _WITH_LENGTH) + varint(size_bytes)


def without_field(content: bytes | memoryview, message: type[Message], name: str) -> tuple[bytes, memoryview]:
    """The message without its field `name`, and what is in that field (nothing if it is not there). Raises ProtocolError."""
    view, wanted, place = memoryview(content), _number(message, name), 0
    rest: list[memoryview] = []
    found: memoryview | None = None
    while place < len(view):
        field = _field(view, place)
        if field.end > len(view):
            raise ProtocolError(f"{message.DESCRIPTOR.name}: it ends within a field")
        if field.number != wanted:
            rest.append(view[place : field.end])
        elif field.kind != _WITH_LENGTH or found is not None:
            raise ProtocolError(f"{message.DESCRIPTOR.name}: {name} is not one run of bytes")
        else:
            found = view[field.start : field.end]
        if len(rest) > MAX_FIELDS:
            raise ProtocolError(f"{message.DESCRIPTOR.name}: more than {MAX_FIELDS} fields")
        place = field.end
    return b"".join(rest), memoryview(b"") if found is None else found


def before_field(beginning: bytes, size_bytes: int, message: type[Message], name: str) -> tuple[bytes, int] | None:
    """What comes before the field `name` in a message of `size_bytes` bytes, and where what is in the field begins.

    None when the field is not the last one, comes twice, or begins after this `beginning`. Raises ProtocolError.
    """
    view, wanted, place = memoryview(beginning), _number(message, name), 0
    for _ in range(MAX_FIELDS):
        if place + _MOST_HEAD_BYTES > len(view):
            return None
        field = _field(view, place)
        if field.number == wanted:
            return (bytes(view[:place]), field.start) if field.kind == _WITH_LENGTH and field.end == size_bytes else None
        place = field.end
    return None


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit of a byte says that more follow."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def _number(message: type[Message], name: str) -> int:
    return int(message.DESCRIPTOR.fields_by_name[name].number)


@dataclass(frozen=True)
class _Field:
    """A field as its head says: what is in it lies from `start` to `end`, which may be after the end of what is there."""

    number: int
    kind: int
    start: int
    end: int


def _field(view: memoryview, place: int) -> _Field:
    tag, start = _read_varint(view, place)
    kind, size_bytes = tag & 7, 0
    if kind == _VARINT:
        size_bytes = _read_varint(view, start)[1] - start
    elif kind == _WITH_LENGTH:
        size_bytes, start = _read_varint(view, start)
    elif kind in _FIXED_BYTES:
        size_bytes = _FIXED_BYTES[kind]
    else:
        raise ProtocolError("protobuf: a field of an unknown kind")
    return _Field(tag >> 3, kind, start, start + size_bytes)


def _read_varint(view: memoryview, place: int) -> tuple[int, int]:
    number = 0
    for position, byte in enumerate(view[place : place + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return number, place + position + 1
    raise ProtocolError("protobuf: a number that does not end")
