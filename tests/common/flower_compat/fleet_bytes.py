# SPDX-License-Identifier: Apache-2.0
"""The protobuf bytes of Fleet calls and answers, well-formed or not, for tests of what stands between site and SuperLink."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesResponse, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import Message, Metadata, ObjectTree, PullObjectResponse, PushObjectRequest, PushObjectResponse
from flwr.proto.node_pb2 import Node
from flwr.proto.recorddict_pb2 import RecordDict


def object_id(name: str) -> str:
    """The id of an object that a test calls `name`."""
    return hashlib.sha256(name.encode()).hexdigest()


def pulled_object(answer: bytes) -> bytes | None:
    """The object in an answer to pull-object; None when it says that there is none."""
    found = PullObjectResponse.FromString(answer)
    return bytes(found.object_content) if found.object_found and found.object_available else None


def pushed_object(call: bytes) -> tuple[str, bytes, str]:
    """Id, content and session of a push-object."""
    push = PushObjectRequest.FromString(call)
    return str(push.object_id), bytes(push.object_content), str(push.session_id)


def stored(is_stored: bool) -> bytes:
    """The SuperLink's answer to push-object."""
    return bytes(PushObjectResponse(stored=is_stored).SerializeToString())


def tree(*names: str) -> ObjectTree:
    """A tree: the first name is outermost, the others are its children."""
    return ObjectTree(object_id=object_id(names[0]), children=[ObjectTree(object_id=object_id(name)) for name in names[1:]])


def message(name: str, **metadata: Any) -> Message:
    """A message called `name`, without content."""
    facts = {"message_id": object_id(name), "message_type": "train", "ttl": 3600.0} | metadata
    return Message(metadata=Metadata(**facts), content=RecordDict())


def delivery(run_id: int, node_id: int, *names: str) -> bytes:
    """The SuperLink's answer to pull-messages: one message for `node_id`, of these objects."""
    answer = PullMessagesResponse(
        messages_list=[message(names[0], run_id=run_id, dst_node_id=node_id, src_node_id=1)], message_object_trees=[tree(*names)]
    )
    return bytes(answer.SerializeToString())


def session(session_id: str) -> bytes:
    """The SuperLink's answer to push-messages."""
    return bytes(PushMessagesResponse(session_id=session_id).SerializeToString())


def reply(node_id: int, run_id: int, reply_to: str, names: Sequence[str] = ("reply",), **changes: Any) -> PushMessagesRequest:
    """A site's reply to the message called `reply_to`; `changes` go into its metadata."""
    metadata = {"run_id": run_id, "src_node_id": node_id, "dst_node_id": 1, "reply_to_message_id": object_id(reply_to)} | changes
    return PushMessagesRequest(
        node=Node(node_id=node_id), messages_list=[message(names[0], **metadata)], message_object_trees=[tree(*names)]
    )


def activation(public_key: bytes) -> ActivateNodeRequest:
    """A node with this key wants to come online."""
    return ActivateNodeRequest(public_key=public_key, heartbeat_interval=30)


def nested_reply(depth: int) -> bytes:
    """A reply whose tree is `depth` objects deep, written by hand: protobuf itself would not build it."""
    inner = b""
    for _ in range(depth):
        inner = b"\x12" + _varint(len(inner)) + inner  # field 2 of ObjectTree: children
    return b"\x1a" + _varint(len(inner)) + inner  # field 3 of PushMessagesRequest: message_object_trees


def _varint(number: int) -> bytes:
    parts = []
    while True:
        number, low = number >> 7, number & 0x7F
        parts.append(low | (0x80 if number else 0))
        if not number:
            return bytes(parts)


def reply_to(message_id: str, node_id: int, run_id: int) -> PushMessagesRequest:
    """A site's reply to the message with this id."""
    return reply(node_id, run_id, "", reply_to_message_id=message_id)
