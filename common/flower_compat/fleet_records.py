# SPDX-License-Identifier: Apache-2.0
"""What a site's calls to Flower's Fleet API say, read from their protobuf bytes: plain values for whoever has to judge them.

Only what the gateway lets through has a reader. A call names the node that makes it, mostly a run, and what it wants:

    Activation      activate-node               a public key
    NodeCall        deactivate-node, send-node-heartbeat, pull-messages
    RunCall         get-run
    ObjectCall      pull-object
    Confirmation    confirm-message-received
    ReplyPush       push-messages               exactly one reply and the tree of its objects
    ObjectPush      push-object
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from flwr.common.constant import TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.constant import (
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    FLWR_COMPONENT_NAME_METADATA_KEY,
    FLWR_PACKAGE_NAME_METADATA_KEY,
    FLWR_PACKAGE_VERSION_METADATA_KEY,
)
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import DecodeError

from common.errors import ProtocolError
from common.flower_compat.shallow import before_field, field_head, without_field

FLEET = "/v1/fleet/"
MEDIA_TYPE = PROTOBUF_MEDIA_TYPE
NODE_KEY_HEADER = FLEET_HTTP_PUBLIC_KEY_HEADER
SIGNATURE_HEADERS = (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER)
VERSION_HEADERS = (FLWR_PACKAGE_NAME_METADATA_KEY, FLWR_PACKAGE_VERSION_METADATA_KEY, FLWR_COMPONENT_NAME_METADATA_KEY)
NO_MESSAGES = b""
"""A PullMessagesResponse that holds nothing."""
MAX_OBJECTS = 8192
"""Objects of one reply: two for each tensor and one for each piece; more would only keep Flower's database busy."""
MAX_PUSH_BYTES = 17 << 20
"""Largest push-object: a piece of 16 MiB (`common.flower_compat.packing`) and what names it."""
CONTENT = "object_content"
_OBJECT_ID = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Activation:
    """A node comes online. `public_key` in PEM."""

    public_key: bytes


@dataclass(frozen=True)
class NodeCall:
    """A call that names only the node which makes it."""

    node_id: int


@dataclass(frozen=True)
class RunCall(NodeCall):
    """A call about a run."""

    run_id: int


@dataclass(frozen=True)
class ObjectCall(RunCall):
    """A call about one object of a run; a message has the id of its outermost object."""

    object_id: str


@dataclass(frozen=True)
class Confirmation(RunCall):
    """The node has a message and all its objects; the SuperLink deletes them."""

    message_id: str


@dataclass(frozen=True)
class ReplyPush(RunCall):
    """A reply without its content, and the ids of all its objects."""

    message_id: str
    reply_to: str
    source_node_id: int
    object_ids: tuple[str, ...]


@dataclass(frozen=True)
class ObjectPush(ObjectCall):
    """One object of a reply that was announced before; `size_bytes` of the whole call, so that the object need not be copied."""

    session_id: str
    size_bytes: int


FleetCall = Activation | NodeCall
"""Every call, by its two roots."""


@dataclass(frozen=True)
class Delivery:
    """A message on its way to a node, and the ids of all its objects."""

    run_id: int
    message_id: str
    destination_node_id: int
    object_ids: frozenset[str]


def read_call(name: str, body: bytes) -> FleetCall:
    """The call `name` (the last part of its path; one of `CALLS`). Raises ProtocolError when `body` is not that call."""
    return CALLS[name](body)


def read_deliveries(body: bytes) -> tuple[Delivery, ...]:
    """The messages in the answer to pull-messages. Raises ProtocolError when message and tree do not fit together."""
    answer = _parsed(PullMessagesResponse, body)
    if len(answer.messages_list) != len(answer.message_object_trees):
        raise ProtocolError("pull-messages: not one tree for each message")
    return tuple(_delivery(message, tree) for message, tree in zip(answer.messages_list, answer.message_object_trees, strict=True))


def read_session(body: bytes) -> str:
    """The session for the objects of a reply, in the answer to push-messages; empty when there is none. Raises ProtocolError."""
    return str(_parsed(PushMessagesResponse, body).session_id)


def stored_answer(is_stored: bool) -> bytes:
    """The answer to push-object."""
    return bytes(PushObjectResponse(stored=is_stored).SerializeToString())


def read_stored(body: bytes) -> bool:
    """Whether the SuperLink took the object, in the answer to push-object. Raises ProtocolError."""
    return bool(_parsed(PushObjectResponse, body).stored)


def split_object(body: bytes) -> tuple[str, memoryview, Callable[[bytes], bytes]]:
    """Id and content of the object in a push-object, not copied, and what makes the same call with other content. Raises ProtocolError."""
    rest, content = without_field(body, PushObjectRequest, CONTENT)
    return str(_parsed(PushObjectRequest, rest).object_id), content, partial(_with_content, rest)


@dataclass(frozen=True)
class ObjectOpening:
    """How a push-object begins whose content comes last: the call, where its content begins, and what makes the same with other content."""

    call: ObjectPush
    start: int
    with_content: Callable[[bytes], bytes]


def read_opening(beginning: bytes, size_bytes: int) -> ObjectOpening | None:
    """A push-object of `size_bytes` bytes by its beginning; None when it has to be read whole. Raises ProtocolError."""
    found = before_field(beginning, size_bytes, PushObjectRequest, CONTENT)
    if found is None:
        return None
    rest, start = found
    call = _object_call(rest, size_bytes)
    if not _OBJECT_ID.fullmatch(call.object_id):
        raise ProtocolError("push-object: the id is no SHA-256 digest")
    return ObjectOpening(call, start, partial(_with_content, rest))


def _with_content(rest: bytes, content: bytes) -> bytes:
    return rest + field_head(PushObjectRequest, CONTENT, len(content)) + content


def object_answer_head(size_bytes: int) -> bytes:
    """How the answer to pull-object begins when the object is there; its `size_bytes` bytes follow, and nothing else.

    Protobuf takes the fields of a message in any order: the content comes last, so it need not be in memory.
    """
    found = PullObjectResponse(object_found=True, object_available=True).SerializeToString()
    return bytes(found) + field_head(PullObjectResponse, CONTENT, size_bytes)


def _delivery(message: Any, tree: Any) -> Delivery:
    metadata = message.metadata
    objects = _object_ids(tree, str(metadata.message_id))
    return Delivery(int(metadata.run_id), str(metadata.message_id), int(metadata.dst_node_id), frozenset(objects))


def _activation(body: bytes) -> FleetCall:
    return Activation(bytes(_parsed(ActivateNodeRequest, body).public_key))


def _deactivation(body: bytes) -> FleetCall:
    return NodeCall(int(_parsed(DeactivateNodeRequest, body).node_id))


def _node_call(kind: Any) -> Callable[[bytes], FleetCall]:
    return lambda body: NodeCall(int(_parsed(kind, body).node.node_id))


def _get_run(body: bytes) -> FleetCall:
    call = _parsed(GetRunRequest, body)
    return RunCall(int(call.node.node_id), int(call.run_id))


def _pull_object(body: bytes) -> FleetCall:
    call = _parsed(PullObjectRequest, body)
    return ObjectCall(int(call.node.node_id), int(call.run_id), str(call.object_id))


def _confirmation(body: bytes) -> FleetCall:
    call = _parsed(ConfirmMessageReceivedRequest, body)
    return Confirmation(int(call.node.node_id), int(call.run_id), str(call.message_object_id))


def _reply_push(body: bytes) -> FleetCall:
    call = _parsed(PushMessagesRequest, body)
    if len(call.messages_list) != 1 or len(call.message_object_trees) != 1 or len(call.clientapp_runtime_list) > 1:
        raise ProtocolError("push-messages: exactly one reply and its tree are taken")
    message, metadata = call.messages_list[0], call.messages_list[0].metadata
    if len(message.content.items) or message.HasField("content") == message.HasField("error"):
        raise ProtocolError("push-messages: the content of a reply travels as objects")
    return ReplyPush(
        node_id=int(call.node.node_id),
        run_id=int(metadata.run_id),
        message_id=str(metadata.message_id),
        reply_to=str(metadata.reply_to_message_id),
        source_node_id=int(metadata.src_node_id),
        object_ids=_object_ids(call.message_object_trees[0], str(metadata.message_id)),
    )


def _object_push(body: bytes) -> FleetCall:
    return _object_call(without_field(body, PushObjectRequest, CONTENT)[0], len(body))


def _object_call(rest: bytes, size_bytes: int) -> ObjectPush:
    """A push-object by what is beside the content."""
    call = _parsed(PushObjectRequest, rest)
    return ObjectPush(
        node_id=int(call.node.node_id),
        run_id=int(call.run_id),
        object_id=str(call.object_id),
        session_id=str(call.session_id),
        size_bytes=size_bytes,
    )


def _object_ids(tree: Any, message_id: str) -> tuple[str, ...]:
    """All ids in `tree`, the outermost first. Raises ProtocolError when it is not the tree of the message, or too large."""
    found: list[str] = []
    for node in _nodes(tree):
        found.append(str(node.object_id))
        if len(found) > MAX_OBJECTS or not _OBJECT_ID.fullmatch(found[-1]):
            raise ProtocolError(f"object tree: not at most {MAX_OBJECTS} SHA-256 digests")
    if found[0] != message_id:
        raise ProtocolError("object tree: belongs to another message")
    return tuple(found)


def _nodes(tree: Any) -> Iterator[Any]:
    pending = [tree]
    while pending:
        node = pending.pop()
        yield node
        pending.extend(node.children)


def _parsed(kind: Any, body: bytes) -> Any:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise ProtocolError(f"not a {kind.DESCRIPTOR.name}") from error


CALLS: dict[str, Callable[[bytes], FleetCall]] = {
    "activate-node": _activation,
    "deactivate-node": _deactivation,
    "send-node-heartbeat": _node_call(SendNodeHeartbeatRequest),
    "pull-messages": _node_call(PullMessagesRequest),
    "push-messages": _reply_push,
    "get-run": _get_run,
    "pull-object": _pull_object,
    "push-object": _object_push,
    "confirm-message-received": _confirmation,
}
"""The calls that a site may make; each value reads the body of one."""
