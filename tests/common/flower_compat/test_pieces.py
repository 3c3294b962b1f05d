# SPDX-License-Identifier: Apache-2.0
"""A piece is on the wire what Flower would have made of it, at both ends, whatever its size and however the parts are cut."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content
from google.protobuf.message import DecodeError

from common.flower_compat import pieces
from common.flower_compat.pieces import NAME, Piece, Views, inflated, pieces_of, view_of

SIZES = [1, 100, 127, 128, 129, 200, 16_383, 16_384, 16_385, 2_097_151, 2_097_152, 2_097_200]


def contents_of(record: RecordDict) -> dict[str, bytes]:
    return {identifier: one.deflate() for identifier, one in get_all_nested_objects(record).items()}


@pytest.mark.parametrize("size", SIZES)
def test_a_piece_is_the_object_that_flower_writes(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    (piece,) = pieces_of([data])
    flowers = ConfigRecord({NAME: data})
    assert piece.deflate() == flowers.deflate()
    assert piece.object_id == flowers.object_id
    validate_object_content(piece.deflate())


@pytest.mark.parametrize("size", SIZES)
def test_what_arrives_is_read_in_the_object_it_came_in(size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    sent = RecordDict({"one": ConfigRecord({NAME: data}), "other": ConfigRecord({"a": 1})})
    contents = contents_of(sent)
    content = contents[sent["one"].object_id]
    arrived = inflated(sent.object_id, contents)
    assert isinstance(arrived, RecordDict) and isinstance(arrived["one"], Piece)
    assert arrived["one"].data.obj is content, "copied"
    assert view_of(arrived["one"]) == data and arrived["other"] == sent["other"]


def test_flower_reads_what_we_send() -> None:
    data = b"x" * 1000
    (piece,) = pieces_of([data])
    sent = RecordDict({"one": piece})
    back = inflate_object_from_contents(sent.object_id, contents_of(sent))
    assert isinstance(back, RecordDict) and back["one"][NAME] == data


def test_a_record_that_is_no_piece_is_flowers() -> None:
    sent = RecordDict({"text": ConfigRecord({NAME: "text"}), "two": ConfigRecord({NAME: b"1", "more": b"2"}), "none": ConfigRecord()})
    back = inflated(sent.object_id, contents_of(sent))
    assert isinstance(back, RecordDict) and not any(isinstance(record, Piece) for record in back.values())
    assert [view_of(record) for record in back.values()] == [None, None, None]


@pytest.mark.parametrize("cut", [lambda content: content[:-1], lambda content: content + b"x", lambda content: b""])
def test_an_object_of_another_length_is_no_piece(cut: Callable[[bytes], bytes]) -> None:
    sent = RecordDict({"one": ConfigRecord({NAME: b"x" * 300})})
    contents = contents_of(sent)
    identifier = sent["one"].object_id
    contents[identifier] = cut(contents[identifier])
    with pytest.raises((ValueError, DecodeError)):
        inflated(sent.object_id, contents)


def test_parts_are_cut_at_the_size_of_a_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", 10)
    parts = [b"", b"abc", b"d" * 17, b"", b"efghijklmn", b"o"]
    made = pieces_of(parts)
    assert [len(piece.data) for piece in made] == [10, 10, 10, 1]
    assert b"".join(piece.data for piece in made) == b"".join(parts)
    assert pieces_of([b"", b""]) == []


def test_views_are_read_across_their_borders() -> None:
    content = Views([memoryview(b"abc"), memoryview(b""), memoryview(b"defg"), memoryview(b"h")])
    assert [content.take(size) for size in (0, 2, 3, 0, 2)] == [b"", b"ab", b"cde", b"", b"fg"]
    for wrong in (2, -1):
        with pytest.raises(ValueError, match="1 left"):
            content.take(wrong)
    assert (content.take(1), content.left) == (b"h", 0)
