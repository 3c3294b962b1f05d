# SPDX-License-Identifier: Apache-2.0
"""Messages in parts: what is read is what was written, and large tensors are not copied."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from common.flower_compat import identity, messages


def message(numbers: int) -> Message:
    identity.assume_server_identity(1)
    tensors = np.arange(numbers, dtype=np.float32)
    content = RecordDict(
        {
            "model": ArrayRecord({"b.weight": Array(tensors), "a": Array(tensors[:3].astype(np.int64))}),
            "counts": ArrayRecord({"counts": Array(np.ones((2, 3)))}),
            "wardround": ConfigRecord({"round": 7, "study": "text"}),
        }
    )
    return Message(content, 5, "train", ttl=60)


@pytest.mark.parametrize(("numbers", "parts"), [(10, 1), (400_000, 4)])
def test_a_message_comes_back_from_its_parts(numbers: int, parts: int) -> None:
    sent = message(numbers)
    before = messages.message_to_bytes(sent)
    written = messages.message_to_parts(sent)
    assert len(written) == parts
    assert messages.message_to_bytes(sent) == before, "writing must leave the message as it was"
    read = messages.message_from_parts([bytes(part) for part in written])
    assert messages.message_to_bytes(read) == before


def test_large_tensors_are_shared_not_copied() -> None:
    sent = message(400_000)
    _, weight, *_ = messages.message_to_parts(sent)
    assert weight is sent.content["model"]["b.weight"].data
    read = messages.message_from_parts(messages.message_to_parts(sent))
    assert read.content["model"]["b.weight"].data is weight


def test_an_error_reply_has_one_part() -> None:
    from flwr.app import Error

    asked = message(4)
    messages.give_message_id(asked)
    reply = Message(Error(3, "ValueError"), reply_to=asked)
    (part,) = messages.message_to_parts(reply)
    assert messages.message_from_parts([part]).error.reason == "ValueError"
