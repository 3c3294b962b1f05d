# SPDX-License-Identifier: Apache-2.0
"""Messages of Flower's Fleet API as a site sees them: announced (`Pulled`), with their records, and the reply (`Outgoing`).

Whatever the link sends is bounded and checked here before anything is made of it; what does not fit raises ProtocolError.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Final

from flwr.app import Message, RecordDict
from flwr.app.message import make_message
from flwr.common.serde_utils import metadata_from_proto
from flwr.proto.message_pb2 import Metadata, ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    InflatableObject,
    UnexpectedObjectContentError,
    get_all_nested_objects,
    get_object_tree,
    is_valid_sha256_hash,
    iterate_object_tree,
    no_object_id_recompute,
)
from google.protobuf.message import DecodeError

from common.errors import ProtocolError, WardroundError
from common.flower_compat.packing import packed, unpacked
from common.flower_compat.pieces import inflated
from common.protocol import MAX_ARRAY_BYTES

MAX_OBJECTS: Final = 100_000
MAX_MESSAGE_BYTES: Final = MAX_ARRAY_BYTES + (1 << 26)


class Interrupted(WardroundError):
    """The caller's `give_up` said so while objects were on their way."""


@dataclass(frozen=True)
class Pulled:
    """A message as it was announced: `header` is Flower's metadata, enough to answer it later, also from another process.

    `expires` in seconds since the epoch, by the coordinator's clock.
    """

    header: bytes
    object_ids: tuple[str, ...]

    @property
    def _proto(self) -> Metadata:
        metadata = Metadata()
        metadata.ParseFromString(self.header)
        return metadata

    @property
    def flower_run_id(self) -> int:
        """Flower's id of the run."""
        return int(self._proto.run_id)

    @property
    def message_id(self) -> str:
        """Digest of the message's outermost object."""
        return str(self._proto.message_id)

    @property
    def message_type(self) -> str:
        """`train`, `evaluate`, or what this site does not do."""
        return str(self._proto.message_type)

    @property
    def expires(self) -> float:
        """When nobody waits for the answer any more."""
        return float(self._proto.created_at + self._proto.ttl)

    def message(self, content: RecordDict | None = None) -> Message:
        """The message with these records as content. Raises ProtocolError for a message type that Flower does not know."""
        try:
            return make_message(metadata_from_proto(self._proto), RecordDict() if content is None else content)
        except ValueError as error:
            raise ProtocolError(f"message {self.message_id[:12]}: its type {self.message_type[:40]!r} is none of Flower's") from error


@dataclass(frozen=True)
class Outgoing:
    """A reply ready to leave, `seconds` after its message was taken up. The same one pushed again is the same message to the link."""

    message: Message
    tree: ObjectTree
    objects: dict[str, InflatableObject]
    seconds: float


def answer_to(pulled: Pulled, records: RecordDict, seconds: float) -> Outgoing:
    """The reply to a message with these records, its tensors packed for the way. Raises ProtocolError."""
    reply = Message(packed([records])[0], reply_to=pulled.message())
    with no_object_id_recompute():  # each tensor is hashed once
        reply.metadata.__dict__["_message_id"] = reply.object_id
        return Outgoing(reply, get_object_tree(reply), get_all_nested_objects(reply), seconds)


class ArrivalGuard:
    """Bounds what one message may bring, and stops the pulling threads when the caller gives up."""

    def __init__(self, give_up: Callable[[], bool]) -> None:
        self._give_up = give_up
        self._lock = Lock()
        self._bytes = 0

    def passed(self, identifier: str) -> str:
        """An id that may be asked for. Raises Interrupted."""
        if self._give_up():
            raise Interrupted("stopped while a message was on its way")
        return identifier

    def counted(self, content: memoryview) -> memoryview:
        """Content that still fits. Raises ProtocolError."""
        with self._lock:
            self._bytes += len(content)
            if self._bytes > MAX_MESSAGE_BYTES:
                raise ProtocolError(f"the message has more than {MAX_MESSAGE_BYTES:,} bytes; the rest was not read")
        return content


def object_ids(tree: ObjectTree, message_id: str) -> tuple[str, ...]:
    """The ids of all objects of a message, each once."""
    found: dict[str, None] = {}
    for part in iterate_object_tree(tree):
        if len(found) >= MAX_OBJECTS or not is_valid_sha256_hash(part.object_id):
            raise ProtocolError(f"message {message_id[:12]}: its list of objects has a wrong name or more than {MAX_OBJECTS:,} entries")
        found[part.object_id] = None
    if tree.object_id != message_id:
        raise ProtocolError(f"message {message_id[:12]}: is not the message of its objects")
    return tuple(found)


def records_of(message_id: str, contents: Mapping[str, memoryview]) -> RecordDict:
    """The records in the objects of a message; its header is not taken from here. Raises ProtocolError."""
    try:
        message = inflated(message_id, contents)
        if isinstance(message, Message) and message.has_content():
            return unpacked(message.content)
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError, DecodeError, UnexpectedObjectContentError) as error:
        raise ProtocolError(f"message {message_id[:12]}: cannot be put together ({type(error).__name__})") from error
    raise ProtocolError(f"message {message_id[:12]}: has no content")
