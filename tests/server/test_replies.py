# SPDX-License-Identifier: Apache-2.0
"""What stands in the place of a reply: whose fault it is decides whether it is a strike."""

import time

import numpy as np
import pytest
from flwr.app import Message, RecordDict

from common.flower_compat.identity import assume_server_identity
from common.flower_compat.messages import give_message_id
from common.protocol import Instruction, Refusal, RefusalCode
from server.replies import Asked, Node, has_no_heartbeat
from tests.common.flower_compat.error_replies import LINK, error_reply

INSTRUCTION = Instruction("a" * 32, "{}", 3, True, False, {"w": np.ones(4, np.float32)})
SITE = 77
TAKEN_BACK = "Error: Message Unavailable - The requested message could not be found in the database."


@pytest.mark.parametrize(
    ("source", "code", "text", "refusal", "reason"),
    [
        (LINK, 5, "Error: Node Unavailable", RefusalCode.NO_REPLY, "no heartbeat"),
        (LINK, 3, TAKEN_BACK, RefusalCode.NO_REPLY, "its message was taken back or has expired"),
        (LINK, 3, "ObjectPullError: x", RefusalCode.NO_REPLY, "the reply cannot be read (ObjectPullError: x)"),
        (LINK, 3, "MemoryError: ", RefusalCode.NO_REPLY, "the reply cannot be read (MemoryError: )"),
        (LINK, 3, "DecodeError: wire type", RefusalCode.REPLY_INVALID, "the reply cannot be read (DecodeError: wire type)"),
        (
            LINK,
            3,
            "UnexpectedObjectContentError: x",
            RefusalCode.REPLY_INVALID,
            "the reply cannot be read (UnexpectedObjectContentError: x)",
        ),
        (SITE, 3, "DecodeError: patient 42", RefusalCode.NO_REPLY, "its message was taken back or has expired"),
        (SITE, 2, "patient 42 at /data", RefusalCode.NO_REPLY, "its app raised an error"),
        (SITE, 999, "patient 42", RefusalCode.NO_REPLY, "Flower error 999"),
    ],
)
def test_an_error_is_read_as_what_it_is(source: int, code: int, text: str, refusal: RefusalCode, reason: str) -> None:
    asked = Asked(INSTRUCTION, time.monotonic(), None, None, None)
    answer = asked.answer(Node(SITE, "north"), error_reply(source, code, text))
    assert (answer.reply, answer.reason) == (Refusal(refusal, "north"), reason)
    assert (answer.bytes_down, answer.bytes_up) == (16, 0)


def test_only_the_link_can_say_that_a_site_is_away() -> None:
    assert has_no_heartbeat(error_reply(LINK, 5, ""))
    assert not has_no_heartbeat(error_reply(SITE, 5, ""))
    assert not has_no_heartbeat(error_reply(LINK, 3, ""))
    assume_server_identity(1)
    message = Message(RecordDict(), SITE, "train")
    give_message_id(message)
    assert not has_no_heartbeat(Message(RecordDict(), reply_to=message))
