# SPDX-License-Identifier: Apache-2.0
"""Messages and contexts as bytes, by Flower's own protobuf schema: fixed fields, no pickle."""

from __future__ import annotations

import uuid

from flwr.app import Context, Message
from flwr.common.constant import ErrorCode
from flwr.common.serde import context_from_proto, context_to_proto, message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage

APP_RAISED = int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)


def message_to_bytes(message: Message) -> bytes:
    """Serialise a message with its metadata."""
    return bytes(message_to_proto(message).SerializeToString())


def message_from_bytes(content: bytes) -> Message:
    """Read what `message_to_bytes` wrote."""
    return message_from_proto(ProtoMessage.FromString(content))


def context_to_bytes(context: Context) -> bytes:
    """Serialise a node's context, state included."""
    return bytes(context_to_proto(context).SerializeToString())


def context_from_bytes(content: bytes) -> Context:
    """Read what `context_to_bytes` wrote."""
    return context_from_proto(ProtoContext.FromString(content))


def give_message_id(message: Message) -> str:
    """Name an instruction, as Flower's link does when it accepts one; returns the id."""
    identifier = uuid.uuid4().hex
    message.metadata.__dict__["_message_id"] = identifier
    return identifier
