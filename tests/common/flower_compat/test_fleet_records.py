# SPDX-License-Identifier: Apache-2.0
"""Fleet calls read from bytes that Flower's own classes wrote; what is no such call is refused."""

from contextlib import suppress

import pytest
from flwr.proto.fleet_pb2 import DeactivateNodeRequest, PullMessagesRequest, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, PullObjectRequest, PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.run_pb2 import GetRunRequest
from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as some

from common.errors import ProtocolError
from common.flower_compat.fleet_records import (
    CALLS,
    FLEET,
    MAX_OBJECTS,
    NO_MESSAGES,
    NODE_KEY_HEADER,
    Activation,
    Confirmation,
    Delivery,
    FleetCall,
    NodeCall,
    ObjectCall,
    ObjectPush,
    ReplyPush,
    RunCall,
    read_call,
    read_deliveries,
    read_session,
)
from tests.common.flower_compat.fleet_bytes import activation, delivery, message, nested_reply, object_id, reply, session, tree

NODE_ID, RUN_ID, ID = 2**64 - 3, 2**63 + 5, object_id("x")
NODE = Node(node_id=NODE_ID)
PUSH = PushObjectRequest(node=NODE, run_id=RUN_ID, object_id=ID, session_id="s", object_content=b"12345")
READ: dict[str, tuple[Message, FleetCall]] = {
    "activate-node": (activation(b"key"), Activation(b"key")),
    "deactivate-node": (DeactivateNodeRequest(node_id=NODE_ID), NodeCall(NODE_ID)),
    "send-node-heartbeat": (SendNodeHeartbeatRequest(node=NODE, heartbeat_interval=30), NodeCall(NODE_ID)),
    "pull-messages": (PullMessagesRequest(node=NODE), NodeCall(NODE_ID)),
    "get-run": (GetRunRequest(node=NODE, run_id=RUN_ID), RunCall(NODE_ID, RUN_ID)),
    "pull-object": (PullObjectRequest(node=NODE, run_id=RUN_ID, object_id=ID), ObjectCall(NODE_ID, RUN_ID, ID)),
    "confirm-message-received": (
        ConfirmMessageReceivedRequest(node=NODE, run_id=RUN_ID, message_object_id=ID),
        Confirmation(NODE_ID, RUN_ID, ID),
    ),
    "push-object": (PUSH, ObjectPush(NODE_ID, RUN_ID, ID, "s", PUSH.ByteSize())),
    "push-messages": (
        reply(NODE_ID, RUN_ID, "asked", ["reply", "a", "b"]),
        ReplyPush(NODE_ID, RUN_ID, object_id("reply"), object_id("asked"), NODE_ID, (object_id("reply"), object_id("b"), object_id("a"))),
    ),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_every_call_is_read(name: str) -> None:
    written, expected = READ[name]
    assert read_call(name, written.SerializeToString()) == expected


def test_the_calls_are_flowers_without_those_that_are_closed() -> None:
    fleet = {path.removeprefix(FLEET) for method, path in PROTOBUF_REQUEST_TYPES if path.startswith(FLEET) and method == "POST"}
    assert fleet - set(CALLS) == {"register-node", "unregister-node", "get-fab"}
    assert set(CALLS) <= fleet


def test_the_class_that_reads_a_call_is_the_one_that_the_superlink_uses() -> None:
    for name, (written, _) in READ.items():
        assert PROTOBUF_REQUEST_TYPES["POST", FLEET + name] is type(written)


def test_the_header_is_flowers() -> None:
    assert NODE_KEY_HEADER == "flwr-public-key"


@pytest.mark.parametrize("name", list(CALLS))
@given(body=some.binary(min_size=1, max_size=200))
def test_no_bytes_raise_anything_else(name: str, body: bytes) -> None:
    with suppress(ProtocolError):
        read_call(name, body)


@given(body=some.binary(max_size=200))
def test_no_answer_raises_anything_else(body: bytes) -> None:
    for read in (read_deliveries, read_session):
        with suppress(ProtocolError):
            read(body)


def test_a_delivery_names_run_node_and_objects() -> None:
    expected = Delivery(RUN_ID, object_id("m"), NODE_ID, frozenset(map(object_id, ("m", "a", "b"))))
    assert read_deliveries(delivery(RUN_ID, NODE_ID, "m", "a", "b")) == (expected,)
    assert read_deliveries(NO_MESSAGES) == ()


def test_a_delivery_without_its_tree_or_with_anothers() -> None:
    for trees in ([], [tree("another")], [tree("m"), tree("m")]):
        answer = PullMessagesResponse(messages_list=[message("m", run_id=1, dst_node_id=2)], message_object_trees=trees)
        with pytest.raises(ProtocolError):
            read_deliveries(answer.SerializeToString())


def test_an_empty_object_id_is_none() -> None:
    with pytest.raises(ProtocolError, match="SHA-256"):
        read_call("push-messages", reply(1, 2, "asked", message_id="").SerializeToString()[:-2] + b"\x0a\x00")


def test_a_session() -> None:
    assert read_session(session("abc")) == "abc"
    assert read_session(b"") == ""


def test_trees_are_bounded_in_width_and_depth() -> None:
    largest = reply(1, 2, "asked", ["reply", *(str(number) for number in range(MAX_OBJECTS - 1))])
    assert isinstance(read_call("push-messages", largest.SerializeToString()), ReplyPush)
    larger = reply(1, 2, "asked", ["reply", *(str(number) for number in range(MAX_OBJECTS))])
    for body in (larger.SerializeToString(), nested_reply(2000)):
        with pytest.raises(ProtocolError):
            read_call("push-messages", body)
