# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_to_proto
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

from common.errors import ProtocolError
from common.flower_compat import packing
from common.flower_compat.packing import NAME, PARCEL, PIECES, packed, unpacked
from common.riders import payload_sha256

TENSORS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(0.5, np.float32), "none": np.zeros((0, 4), np.float32)}


def content(**more: ConfigRecord) -> RecordDict:
    return RecordDict(
        {"model": ArrayRecord({name: Array(value) for name, value in TENSORS.items()}), "facts": ConfigRecord({"a": 1}), **more}
    )


def by_hand(entries: object, tail: bytes, length: int | None = None) -> RecordDict:
    header = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    size = len(header) if length is None else length
    data = size.to_bytes(8, "big") + header + tail
    return RecordDict({f"{PIECES}/0/model": ConfigRecord({NAME: data})})


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever has a tensor counts as large."""
    monkeypatch.setattr(packing, "SMALL_BYTES", 0)


def test_small_content_goes_as_one_value_and_comes_back_as_it_was() -> None:
    (on_the_way,) = packed([content()])
    assert list(on_the_way) == [PARCEL]
    back = unpacked(on_the_way)
    assert payload_sha256(back) == payload_sha256(content())
    assert [*back, *back["model"]] == [*content(), *TENSORS]


@pytest.mark.parametrize(
    "parcel",
    [{}, {NAME: "text"}, {NAME: b"", "more": b""}, {NAME: b"\xff\xff\xff"}, {"other": b""}],
)
def test_a_parcel_that_does_not_fit_is_refused(parcel: dict[str, object]) -> None:
    with pytest.raises(ProtocolError, match="parcel"):
        unpacked(RecordDict({PARCEL: ConfigRecord(parcel)}))


def test_what_a_parcel_holds_is_not_looked_into() -> None:
    inner = packed([content()])[0]
    nested = RecordDict({PARCEL: ConfigRecord({NAME: recorddict_to_proto(inner).SerializeToString()})})
    assert list(unpacked(nested)) == [PARCEL]


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_packed_twice_is_packed_once(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "SMALL_BYTES", limit)
    (once,) = packed([content()])
    assert packed([once])[0] is once


def test_what_was_packed_is_unpacked_as_it_was(large: None) -> None:
    (on_the_way,) = packed([content()])
    assert list(on_the_way) == [PARCEL, f"{PIECES}/0/model"]
    back = unpacked(on_the_way)
    assert payload_sha256(back) == payload_sha256(content())
    assert list(back["model"]) == list(TENSORS)
    for name, value in TENSORS.items():
        assert back["model"][name].numpy().tolist() == value.tolist()
        assert back["model"][name].shape == value.shape


def test_a_shared_record_stays_shared(large: None) -> None:
    first = content()
    second = RecordDict({"model": first["model"], "facts": ConfigRecord({"a": 2})})
    one, other = packed([first, second])
    assert one[f"{PIECES}/0/model"] is other[f"{PIECES}/0/model"]


def test_a_parcel_beside_tensors_may_not_hold_a_record_of_their_name(large: None) -> None:
    (on_the_way,) = packed([content()])
    (other,) = packed([RecordDict({"model": ConfigRecord({"a": 1})})])
    with pytest.raises(ProtocolError, match="two records of one name"):
        unpacked(RecordDict({**on_the_way, PARCEL: other[PARCEL]}))


def test_a_model_is_a_handful_of_objects() -> None:
    """45 MB in 62 tensors: Flower alone would make some 140 objects of it, and each is a call."""
    tensors = {f"t{number}": Array(np.zeros(181_500, np.float32)) for number in range(62)}
    (on_the_way,) = packed([RecordDict({"model": ArrayRecord(tensors), "facts": ConfigRecord({"a": 1}), "more": ConfigRecord()})])
    assert len(get_all_nested_objects(on_the_way)) == 5


ENTRY = ["w", "float32", [2], "numpy.ndarray", 4]
FORGED = {
    "longer than all": by_hand([ENTRY], b"1234", 1 << 40),
    "no header": by_hand(b"", b"1234"),
    "no json": by_hand(b"[[", b""),
    "no list": by_hand({"w": 1}, b""),
    "bytes missing": by_hand([ENTRY], b"123"),
    "bytes left over": by_hand([ENTRY], b"12345"),
    "negative size": by_hand([["v", "float32", [1], "numpy.ndarray", 5], ["w", "float32", [1], "numpy.ndarray", -1]], b"1234"),
    "size is true": by_hand([["w", "float32", [2], "numpy.ndarray", True]], b"1"),
    "shape of text": by_hand([["w", "float32", ["2"], "numpy.ndarray", 4]], b"1234"),
    "name is no text": by_hand([[1, "float32", [2], "numpy.ndarray", 4]], b"1234"),
    "two of one name": by_hand([ENTRY, ENTRY], b"12341234"),
    "too few facts": by_hand([["w", "float32"]], b"1234"),
}


@pytest.mark.parametrize("forged", FORGED.values(), ids=FORGED.keys())
def test_what_does_not_fit_is_refused(forged: RecordDict) -> None:
    with pytest.raises(ProtocolError, match="packed tensors"):
        unpacked(forged)


@pytest.mark.parametrize("names", [["0", "2"], ["1"], ["00"], ["-1"], ["x"], [""], ["0/", "1e9"]])
def test_pieces_that_do_not_follow_each_other_are_refused(names: list[str]) -> None:
    piece = ConfigRecord({NAME: b"1234"})
    with pytest.raises(ProtocolError, match="packed tensors"):
        unpacked(RecordDict({f"{PIECES}/{name}/model": piece for name in names}))


def test_a_piece_is_a_record_of_one_value() -> None:
    for odd in (ConfigRecord(), ConfigRecord({NAME: 1}), ConfigRecord({NAME: b"", "more": 1}), ArrayRecord()):
        with pytest.raises(ProtocolError, match="one value"):
            unpacked(RecordDict({f"{PIECES}/0/model": odd}))
