# SPDX-License-Identifier: Apache-2.0
"""One field of a message without a copy: what protobuf reads is what we read, and what could be read in two ways is refused."""

import pytest
from flwr.proto.message_pb2 import PullObjectResponse, PushObjectRequest
from flwr.proto.node_pb2 import Node
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from common.errors import ProtocolError
from common.flower_compat.shallow import MAX_FIELDS, field_head, varint, without_field

CONTENT = "object_content"


def push(content: bytes, **facts: object) -> bytes:
    return bytes(PushObjectRequest(object_content=content, **facts).SerializeToString())


@given(st.binary(max_size=300), st.integers(0, (1 << 64) - 1), st.text(max_size=70), st.one_of(st.none(), st.integers(0, (1 << 64) - 1)))
def test_what_protobuf_wrote_is_taken_apart_and_put_together(content: bytes, run_id: int, name: str, node_id: int | None) -> None:
    facts = {"run_id": run_id, "object_id": name, "node": None if node_id is None else Node(node_id=node_id)}
    body = push(content, **facts)
    rest, found = without_field(body, PushObjectRequest, CONTENT)
    assert found == content
    assert PushObjectRequest.FromString(rest) == PushObjectRequest(**facts)
    again = rest + field_head(PushObjectRequest, CONTENT, len(content)) + content
    assert PushObjectRequest.FromString(again) == PushObjectRequest.FromString(body)


def test_the_field_is_not_copied() -> None:
    body = push(b"x" * 1000, object_id="a")
    assert without_field(body, PushObjectRequest, CONTENT)[1].obj is body


@given(st.binary(max_size=60))
def test_whatever_comes_is_read_as_protobuf_reads_it_or_refused(body: bytes) -> None:
    try:
        theirs = PushObjectRequest.FromString(body)
        rest, found = without_field(body, PushObjectRequest, CONTENT)
    except (DecodeError, ProtocolError):
        return
    ours = PushObjectRequest.FromString(rest)
    assert theirs.object_content == found
    theirs.ClearField(CONTENT)
    assert theirs.SerializeToString(deterministic=True) == ours.SerializeToString(deterministic=True)


TWICE = push(b"one") + push(b"two")
REFUSED = {
    "twice": TWICE,
    "another kind": varint(PushObjectRequest.DESCRIPTOR.fields_by_name[CONTENT].number << 3) + b"\x01",
    "cut off": push(b"x" * 20)[:-1],
    "longer than all": field_head(PushObjectRequest, CONTENT, 1 << 60) + b"x",
    "group": varint(9 << 3 | 3) + varint(9 << 3 | 4),
    "number without end": b"\xff" * 11,
    "nothing after the tag": b"\x08",
    "many fields": (varint(99 << 3) + b"\x01") * (MAX_FIELDS + 1),
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_one_field_is_refused(body: bytes) -> None:
    with pytest.raises(ProtocolError):
        without_field(body, PushObjectRequest, CONTENT)


def test_a_field_that_is_not_there_is_empty() -> None:
    body = bytes(PullObjectResponse(object_found=True).SerializeToString())
    assert without_field(body, PullObjectResponse, CONTENT) == (body, memoryview(b""))
