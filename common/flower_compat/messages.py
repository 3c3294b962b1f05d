# SPDX-License-Identifier: Apache-2.0
"""Messages and contexts as bytes, by Flower's own protobuf schema: fixed fields, no pickle.

A message with large tensors goes in several parts: first the message with a number in place of each tensor's bytes, then the bytes of each
tensor as they are, so that a model is not copied from one protobuf into the next and the next.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from flwr.app import ArrayRecord, Context, Message, RecordDict
from flwr.common.constant import ErrorCode
from flwr.common.serde import context_from_proto, context_to_proto, message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Context as ProtoContext
from flwr.proto.message_pb2 import Message as ProtoMessage

SMALL_BYTES: Final = 1 << 20
APP_RAISED = int(ErrorCode.CLIENT_APP_RAISED_EXCEPTION)


def message_to_bytes(message: Message) -> bytes:
    """Serialise a message with its metadata."""
    return bytes(message_to_proto(message).SerializeToString())


def message_from_bytes(content: bytes) -> Message:
    """Read what `message_to_bytes` wrote."""
    return message_from_proto(ProtoMessage.FromString(content))


def message_to_parts(message: Message) -> list[bytes]:
    """A message as one or several parts; the tensors' bytes are shared with it, not copied."""
    if not message.has_content() or _tensor_bytes(message.content) <= SMALL_BYTES:
        return [message_to_bytes(message)]
    tensors: list[bytes] = []
    content = message.content
    message.content = RecordDict({name: _numbered(one, tensors) if isinstance(one, ArrayRecord) else one for name, one in content.items()})
    try:
        return [message_to_bytes(message), *tensors]
    finally:
        message.content = content


def message_from_parts(parts: Sequence[bytes]) -> Message:
    """Read what `message_to_parts` wrote."""
    message = message_from_bytes(parts[0])
    if len(parts) > 1:
        for name, one in list(message.content.items()):
            if isinstance(one, ArrayRecord):
                arrays = {key: replace(array, data=parts[int(array.data)]) for key, array in one.items()}
                message.content[name] = ArrayRecord(arrays)
    return message


def _numbered(record: ArrayRecord, tensors: list[bytes]) -> ArrayRecord:
    """The record with the number of its part in place of each tensor's bytes, which are added to `tensors`."""
    numbered = {}
    for key, array in record.items():
        tensors.append(array.data)
        numbered[key] = replace(array, data=str(len(tensors)).encode())
    return ArrayRecord(numbered)


def _tensor_bytes(content: RecordDict) -> int:
    return sum(len(array.data) for record in content.values() if isinstance(record, ArrayRecord) for array in record.values())


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
