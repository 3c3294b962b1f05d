# SPDX-License-Identifier: Apache-2.0
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common import protocol
from common.errors import ProtocolError
from common.flower_compat import messages
from common.protocol import Evaluated, Instruction, Refusal, RefusalCode, Update, read_reply

MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(0.5, np.float32)}
SHAPES = protocol.shapes_of(MODEL)


def make_instruction(**changes: object) -> Instruction:
    return Instruction(**{"run_id": "r", "study": "{}", "round": 3, "train": True, "evaluate": False, "model": MODEL, **changes})


def read(records: RecordDict) -> protocol.Reply:
    return read_reply(records, run_id="r", round_number=3, shapes=SHAPES)


def same(left: protocol.Arrays, right: protocol.Arrays) -> bool:
    return list(left) == list(right) and all(np.array_equal(left[name], right[name]) for name in left)


def test_instruction_round_trip() -> None:
    sent = make_instruction()
    got = Instruction.from_records(sent.to_records())
    assert (got.run_id, got.study, got.round, got.train, got.evaluate) == ("r", "{}", 3, True, False)
    assert same(got.model, MODEL)
    assert got.sha256 == sent.sha256


@pytest.mark.parametrize(
    "change", [{"run_id": "q"}, {"study": "{ }"}, {"round": 4}, {"train": False}, {"evaluate": True}, {"model": {"w": MODEL["w"]}}]
)
def test_the_digest_names_all_of_the_content(change: dict[str, object]) -> None:
    assert make_instruction(**change).sha256 != make_instruction().sha256


def test_the_digest_sees_one_changed_bit() -> None:
    changed = {**MODEL, "w": np.nextafter(MODEL["w"], np.float32(9))}
    assert make_instruction(model=changed).sha256 != make_instruction().sha256


def test_replies_round_trip() -> None:
    update = read(Update("r", 3, "north", MODEL).to_records())
    assert isinstance(update, Update)
    assert update.site == "north"
    assert same(update.delta, MODEL)
    assert read(Evaluated("r", 3, "north").to_records()) == Evaluated("r", 3, "north")
    assert read(Refusal(RefusalCode.WORKER_LOST, "north").to_records()) == Refusal(RefusalCode.WORKER_LOST, "north")


@given(hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=4), elements=st.floats(-1e6, 1e6, width=32)))
def test_any_finite_tensor_survives_the_wire(tensor: np.ndarray) -> None:
    records = Update("r", 3, "s", {"t": tensor}).to_records()
    update = read_reply(records, run_id="r", round_number=3, shapes={"t": tensor.shape})
    assert isinstance(update, Update)
    assert np.array_equal(update.delta["t"], tensor)


def test_a_reply_carries_nothing_but_tensors_round_and_site() -> None:
    records = Update("r", 3, "north", MODEL).to_records()
    assert set(records) == {"wardround", "model", "metrics"}
    assert set(records.config_records["wardround"]) == {"protocol", "kind", "run_id", "round", "site"}
    assert dict(records.metric_records["metrics"]) == {"num-examples": 1}


def with_facts(**changes: object) -> RecordDict:
    records = Update("r", 3, "s", MODEL).to_records()
    records["wardround"] = ConfigRecord({**records.config_records["wardround"], **changes})
    return records


def with_model(model: dict[str, Array]) -> RecordDict:
    records = Update("r", 3, "s", MODEL).to_records()
    records["model"] = ArrayRecord(model)
    return records


def packed(**tensors: np.ndarray) -> dict[str, Array]:
    return {name: Array(value) for name, value in tensors.items()}


def lying(array: np.ndarray, shape: str) -> Array:
    """A tensor whose header claims another shape."""
    honest = Array(array).data
    start, end = honest.index(b"(", honest.index(b"'shape'")), honest.index(b")") + 1
    claim = shape.encode()
    padded = honest[:start] + claim + honest[end:]
    length = int.from_bytes(honest[8:10], "little") + len(claim) - (end - start)
    return Array("float32", array.shape, "numpy.ndarray", padded[:8] + length.to_bytes(2, "little") + padded[10:])


BAD_REPLIES: dict[str, Callable[[], RecordDict]] = {
    "no record 'wardround'": lambda: RecordDict({}),
    "speaks protocol 99": lambda: with_facts(protocol=99),
    "unknown kind": lambda: with_facts(kind="poem"),
    "belongs to run": lambda: with_facts(run_id="other"),
    "belongs to run r round 2, not to round 3": lambda: with_facts(round=2),
    "round is negative": lambda: with_facts(round=-1),
    "round is str, expected int": lambda: with_facts(round="3"),
    "round is bool, expected int": lambda: with_facts(round=True),
    "tensor b is missing": lambda: with_model(packed(w=MODEL["w"])),
    "tensor extra was not asked for": lambda: with_model(packed(**MODEL, extra=MODEL["w"])),
    r"tensor w has shape \(3, 2\), expected \(2, 3\)": lambda: with_model(packed(b=MODEL["b"], w=MODEL["w"].T.copy())),
    "tensor w is float64, expected float32": lambda: with_model(packed(b=MODEL["b"], w=MODEL["w"].astype(np.float64))),
    "tensor w has values that are not finite": lambda: with_model(packed(b=MODEL["b"], w=MODEL["w"] / np.float32(0.0))),
    "tensor w cannot be decoded": lambda: with_model({**packed(b=MODEL["b"]), "w": Array("float32", (2, 3), "numpy.ndarray", b"junk")}),
    "tensor w cannot be decoded .format": lambda: with_model({**packed(b=MODEL["b"]), "w": Array("float32", (2, 3), "pickle", b"")}),
    "not a site's name": lambda: with_facts(site="../../etc"),
    "its header does not fit its bytes": lambda: with_model({**packed(b=MODEL["b"]), "w": lying(MODEL["w"], "(10000000000000,)")}),
    "tensor w cannot be decoded .TokenError": lambda: with_model({**packed(b=MODEL["b"]), "w": lying(MODEL["w"], "(")}),
    "unknown code": lambda: RecordDict({"wardround": ConfigRecord({"protocol": 1, "kind": "refusal", "code": "NO", "site": "s"})}),
}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("problem", BAD_REPLIES)
def test_a_reply_that_does_not_fit_is_refused_with_the_reason(problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        read(BAD_REPLIES[problem]())


def test_all_problems_of_a_reply_are_named() -> None:
    with pytest.raises(ProtocolError, match="tensor b is missing; tensor w is missing; tensor q was not asked for"):
        read(with_model(packed(q=MODEL["w"])))


def test_an_object_array_is_never_unpickled() -> None:
    import io

    buffer = io.BytesIO()
    np.save(buffer, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    bad = {**packed(b=MODEL["b"]), "w": Array("float32", (2, 3), "numpy.ndarray", buffer.getvalue())}
    with pytest.raises(ProtocolError, match="tensor w cannot be decoded"):
        read(with_model(bad))


def test_size_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "MAX_ARRAY_BYTES", 100)
    with pytest.raises(ProtocolError, match="at most 100 are read"):
        read(Update("r", 3, "s", MODEL).to_records())


def test_an_instruction_with_a_huge_study_is_refused() -> None:
    with pytest.raises(ProtocolError, match="at most 1048576 are read"):
        Instruction.from_records(make_instruction(study="x" * ((1 << 20) + 1)).to_records())


@given(st.binary(max_size=300))
def test_any_bytes_as_a_message_end_in_an_error_of_their_own_kind(noise: bytes) -> None:
    from google.protobuf.message import DecodeError

    try:
        message = messages.message_from_bytes(noise)
    except (DecodeError, ValueError, TypeError, KeyError):
        return
    if message.has_content():
        with pytest.raises(ProtocolError):
            Instruction.from_records(message.content)


COUNTS = np.array([[[3, -2, 0], [0, 1, 7]]], dtype=np.int64)


def read_evaluated(records: RecordDict, shape: tuple[int, ...] | None = (1, 2, 3)) -> protocol.Reply:
    return read_reply(records, run_id="r", round_number=3, shapes=SHAPES, counts_shape=shape)


def with_counts(**counts: np.ndarray) -> RecordDict:
    records = Evaluated("r", 3, "s").to_records()
    records["counts"] = ArrayRecord({name: Array(value) for name, value in counts.items()})
    return records


def test_a_histogram_survives_the_wire_negative_counts_too() -> None:
    got = read_evaluated(Evaluated("r", 3, "north", COUNTS).to_records())
    assert isinstance(got, Evaluated)
    assert got.counts is not None
    assert np.array_equal(got.counts, COUNTS)


BAD_COUNTS: dict[str, Callable[[], RecordDict]] = {
    "has no histogram": lambda: Evaluated("r", 3, "s").to_records(),
    "has no histogram of counts": lambda: with_counts(counts=COUNTS, more=COUNTS),
    r"counts are int64 \(2, 3\), expected int64 \(1, 2, 3\)": lambda: with_counts(counts=COUNTS[0]),
    "counts are float64": lambda: with_counts(counts=COUNTS.astype(np.float64)),
    "a count lies outside": lambda: with_counts(counts=COUNTS * 10**9),
    "counts cannot be decoded": lambda: with_counts(counts=COUNTS.transpose(0, 2, 1).copy().transpose(0, 2, 1)),
}


@pytest.mark.parametrize("problem", BAD_COUNTS)
def test_a_histogram_that_does_not_fit_is_refused_with_the_reason(problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        read_evaluated(BAD_COUNTS[problem]())


def test_a_histogram_that_nobody_asked_for_is_refused() -> None:
    with pytest.raises(ProtocolError, match="no histogram was asked for"):
        read_evaluated(Evaluated("r", 3, "s", COUNTS).to_records(), None)
