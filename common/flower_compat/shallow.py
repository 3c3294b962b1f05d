# SPDX-License-Identifier: Apache-2.0
"""One long field of a protobuf message, without a copy of it: protobuf itself copies a field to read it, and again to write it.

The rest of the message is left to protobuf. What protobuf would read in two ways, or in an old one (a field that comes twice, groups),
is refused.
"""

from __future__ import annotations

from typing import Final

from google.protobuf.message import Message

from common.errors import ProtocolError

MAX_FIELDS: Final = 64
_VARINT, _FIXED_64, _WITH_LENGTH, _FIXED_32 = 0, 1, 2, 5
_FIXED_BYTES: Final = {_FIXED_64: 8, _FIXED_32: 4}
_MAX_VARINT_BYTES: Final = 10


def field_head(message: type[Message], name: str, size_bytes: int) -> bytes:
    """What stands before the bytes of a field: its tag and its length."""
    return varint(_number(message, name) << 3 | _WITH_LENGTH) + varint(size_bytes)


def without_field(content: bytes, message: type[Message], name: str) -> tuple[bytes, memoryview]:
    """The message without its field `name`, and what is in that field (nothing if it is not there). Raises ProtocolError."""
    view, wanted, place = memoryview(content), _number(message, name), 0
    rest: list[memoryview] = []
    found: memoryview | None = None
    while place < len(view):
        start = place
        number, body, place = _field(view, start)
        if number != wanted:
            rest.append(view[start:place])
        elif body is None or found is not None:
            raise ProtocolError(f"{message.DESCRIPTOR.name}: {name} is not one run of bytes")
        else:
            found = body
        if len(rest) > MAX_FIELDS:
            raise ProtocolError(f"{message.DESCRIPTOR.name}: more than {MAX_FIELDS} fields")
    return b"".join(rest), memoryview(b"") if found is None else found


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the highest bit of a byte says that more follow."""
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*digits, number])


def _number(message: type[Message], name: str) -> int:
    return int(message.DESCRIPTOR.fields_by_name[name].number)


def _field(view: memoryview, place: int) -> tuple[int, memoryview | None, int]:
    """Number of the field at `place`, its bytes if it has a length, and where the next one begins."""
    tag, place = _read_varint(view, place)
    kind, body = tag & 7, None
    if kind == _VARINT:
        _, place = _read_varint(view, place)
    elif kind == _WITH_LENGTH:
        size_bytes, place = _read_varint(view, place)
        body = view[place : place + size_bytes]
        place += size_bytes
    elif kind in _FIXED_BYTES:
        place += _FIXED_BYTES[kind]
    else:
        raise ProtocolError("protobuf: a field of an unknown kind")
    if place > len(view):
        raise ProtocolError("protobuf: the message ends within a field")
    return tag >> 3, body, place


def _read_varint(view: memoryview, place: int) -> tuple[int, int]:
    number = 0
    for position, byte in enumerate(view[place : place + _MAX_VARINT_BYTES]):
        number |= (byte & 0x7F) << 7 * position
        if byte < 0x80:
            return number, place + position + 1
    raise ProtocolError("protobuf: a number that does not end")
