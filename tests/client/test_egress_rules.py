# SPDX-License-Identifier: Apache-2.0
"""The allow-list at the door: each thing more, less or other than what was asked for stays in the building."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from client.egress import Incoming, release
from client.egress_rules import ExitRules, check_exit
from common.errors import InputError, ProtocolError
from common.protocol import COUNTS, FACTS, MODEL, Refusal, RefusalCode, read_reply
from common.riders import EGRESS_FACT, HEAD_FACT, egress_of, payload_sha256, with_egress
from common.study import Study
from tests.client.egress_site import (
    COUNTS_SHAPE,
    NAME,
    RUN,
    SITE,
    STRANGER,
    evaluated,
    incoming,
    instruction,
    lines_of,
    make_home,
    model,
    refusal,
    update,
)
from tests.support.studies import PRIVATE, small

RULES = ExitRules(NAME, ("histogram",), SITE.signer.public_key)
Change = Callable[[RecordDict], None]


def check(reply: RecordDict, asked: Incoming, rules: ExitRules = RULES) -> None:
    check_exit(reply, asked, lambda: rules)


def facts(**more: Any) -> Change:
    """Facts that are added or changed; None takes one away."""

    def change(reply: RecordDict) -> None:
        reply[FACTS] = ConfigRecord({key: value for key, value in {**reply[FACTS], **more}.items() if value is not None})

    return change


def record(name: str, value: Any) -> Change:
    def change(reply: RecordDict) -> None:
        reply[name] = value

    return change


def tensor(name: str, array: Array) -> Change:
    def change(reply: RecordDict) -> None:
        reply[MODEL] = ArrayRecord({**reply[MODEL], name: array})

    return change


def without(name: str) -> Change:
    def change(reply: RecordDict) -> None:
        del reply[name]

    return change


def metrics(**values: Any) -> Change:
    return record("metrics", MetricRecord({key.replace("_", "-"): value for key, value in values.items()}))


def ones(*shape: int, dtype: Any = np.float32) -> Array:
    return Array(np.ones(shape, dtype))


def packed(header: bytes, values: bytes) -> Array:
    """A tensor `bias` with these bytes in the place of its own."""
    return Array("float32", (3,), "numpy.ndarray", header + values)


def npy(spaces: int = 0) -> bytes:
    """The header of three float32 with more blanks than it needs."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": (3,)})
    text = buffer.getvalue()[10:-1] + b" " * spaces + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def special(value: float) -> Array:
    return Array(np.array([1, value, 1], np.float32))


def test_what_was_asked_for_may_leave() -> None:
    check(update(), incoming())
    check(evaluated(), incoming(train=False))
    check(evaluated(counts=True), incoming(train=False, counts_shape=COUNTS_SHAPE))
    for code in RefusalCode:
        check(refusal(code), incoming())
        check(refusal(code), Incoming.unread())
        check(Refusal(code, NAME).to_records(), Incoming.unread())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        pytest.param(record("notes", ConfigRecord({"x": "patient 42"})), "record notes is not on the list", id="extra facts record"),
        pytest.param(record("extra", ArrayRecord({})), "record extra is not on the list", id="extra tensors record"),
        pytest.param(record("more", MetricRecord({"loss": 0.1})), "record more is not on the list", id="extra metrics record"),
        pytest.param(
            record(COUNTS, ArrayRecord({COUNTS: ones(1, 2, 4, dtype=np.int64)})), "record counts is not on", id="counts with update"
        ),
        pytest.param(without("metrics"), "record metrics is missing", id="no metrics record"),
        pytest.param(without(MODEL), "record model is missing", id="no model"),
        pytest.param(record(MODEL, ConfigRecord({"bias": b"bytes"})), "record model is of another type", id="model of text"),
        pytest.param(record("metrics", ConfigRecord({"num-examples": 1})), "record metrics is of another type", id="metrics as facts"),
        pytest.param(facts(loss=0.25), "fact loss is not on the list", id="extra fact"),
        pytest.param(facts(egress="text"), "fact egress is not on the list", id="a statement of the worker's own"),
        pytest.param(facts(ledger_receipt="text"), "fact ledger_receipt is not on the list", id="a receipt"),
        pytest.param(facts(code="NOT_READY"), "fact code is not on the list", id="a refusal's fact"),
        pytest.param(facts(site=None), "fact site is missing", id="no site"),
        pytest.param(facts(round="1"), "fact round is missing or of another type", id="round as text"),
        pytest.param(facts(round=True), "fact round is missing or of another type", id="round as truth"),
        pytest.param(facts(round=2), "round 2", id="another round"),
        pytest.param(facts(run_id="cd" * 16), "belongs to run cdcdcdcd", id="another run"),
        pytest.param(facts(protocol=2), "speaks protocol 2", id="another protocol"),
        pytest.param(facts(site="south"), "not in the name of north", id="another site's name"),
        pytest.param(facts(kind="letter"), "neither update, evaluated, surveyed nor refusal", id="unknown kind"),
        pytest.param(facts(kind=None), "neither update, evaluated, surveyed nor refusal", id="no kind"),
        pytest.param(facts(kind=1), "neither update, evaluated, surveyed nor refusal", id="kind is a number"),
        pytest.param(facts(ledger_head="free text"), "the ledger's head is none", id="free text as head"),
        pytest.param(facts(ledger_head=7), "the ledger's head is none", id="a number as head"),
        pytest.param(metrics(num_examples=2), "metrics may only be num-examples 1", id="num-examples 2"),
        pytest.param(metrics(num_examples=1.0), "metrics may only be num-examples 1", id="num-examples as float"),
        pytest.param(metrics(num_examples=[1]), "metrics may only be num-examples 1", id="num-examples as list"),
        pytest.param(metrics(num_examples=1, loss=0.5), "metrics may only be num-examples 1", id="extra metric"),
        pytest.param(metrics(), "metrics may only be num-examples 1", id="no metric"),
        pytest.param(tensor("scores", ones(80)), "tensor scores was not asked for", id="extra tensor"),
        pytest.param(record(MODEL, ArrayRecord({"bias": ones(3)})), "tensor weight is missing", id="missing tensor"),
        pytest.param(tensor("bias", ones(3, dtype=np.float64)), "bias is float64", id="float64"),
        pytest.param(tensor("bias", ones(3, dtype=np.int32)), "bias is int32", id="int32"),
        pytest.param(tensor("bias", ones(4)), "bias has shape (4,)", id="too long"),
        pytest.param(tensor("bias", ones(1, 3)), "bias has shape (1, 3)", id="another rank"),
        pytest.param(tensor("bias", special(np.nan)), "bias has values that are not finite", id="NaN"),
        pytest.param(tensor("bias", special(np.inf)), "bias has values that are not finite", id="infinity"),
        pytest.param(tensor("bias", packed(npy(), b"\0" * 12 + b"name")), "cannot be decoded", id="bytes behind the values"),
        pytest.param(tensor("bias", packed(npy(64), b"\0" * 12)), "bias has bytes that are no part of it", id="blanks in the header"),
        pytest.param(tensor("bias", Array("patient 42", (3,), "numpy.ndarray", npy() + b"\0" * 12)), "no part of it", id="text as dtype"),
        pytest.param(
            tensor("bias", Array("float32", (3, 7), "numpy.ndarray", npy() + b"\0" * 12)), "no part of it", id="described otherwise"
        ),
        pytest.param(tensor("bias", Array("float32", (3,), "pickle", b"\x80\x04N.")), "cannot be decoded", id="a pickle"),
    ],
)
def test_nothing_else_leaves_with_an_update(change: Change, said: str, tmp_path: Path) -> None:
    reply = update()
    change(reply)
    with pytest.raises(ProtocolError, match="may not leave") as caught:
        check(reply, incoming())
    assert said in str(caught.value)
    home = make_home(tmp_path)
    left = release(home, incoming(), reply)
    assert set(left) == {FACTS} and set(left[FACTS]) == {"protocol", "kind", "code", "site", EGRESS_FACT}
    assert read_reply(left, run_id=RUN, round_number=1, shapes={}) == Refusal(RefusalCode.TRAINING_FAILED, "")
    assert [(line.kind, line.code) for line in lines_of(home)] == [("refusal", "TRAINING_FAILED")]
    assert said in home.log.read_text(encoding="utf-8"), "hospital IT sees the cause"


def test_the_blanks_are_the_only_thing_wrong_with_that_header() -> None:
    """The header of the test above is one that numpy reads: only the comparison with the canonical one finds the room in it."""
    array = packed(npy(64), np.ones(3, np.float32).tobytes())
    assert np.load(io.BytesIO(array.data), allow_pickle=False).tolist() == [1, 1, 1]
    reply = update()
    tensor("bias", array)(reply)
    shapes = {name: value.shape for name, value in model().items()}
    read_reply(reply, run_id=RUN, round_number=1, shapes=shapes)
    assert npy() + np.ones(3, np.float32).tobytes() == ones(3).data


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (facts(site="patient-42"), "not in the name of north"),
        (facts(site=NAME, reason="disk of Dr. Meyer is full"), "fact reason is not on the list"),
        (facts(code="PATIENT_42"), "unknown code"),
        (facts(code=4), "fact code is missing or of another type"),
        (facts(ledger_head="x"), "fact ledger_head is not on the list"),
        (facts(round=1), "fact round is not on the list"),
        (record("metrics", MetricRecord({"num-examples": 1})), "record metrics is not on the list"),
        (record(MODEL, ArrayRecord({})), "record model is not on the list"),
    ],
)
def test_a_refusal_is_a_code_and_nothing_else(change: Change, said: str) -> None:
    reply = refusal()
    change(reply)
    with pytest.raises(ProtocolError) as caught:
        check(reply, Incoming.unread())
    assert said in str(caught.value)


def test_counts_leave_only_where_asked_for_and_allowed(tmp_path: Path) -> None:
    asked = incoming(train=False, counts_shape=COUNTS_SHAPE)
    reply = evaluated(counts=True)
    with pytest.raises(ProtocolError, match="record counts is not on the list"):
        check(reply, incoming(train=False))
    with pytest.raises(ProtocolError, match="record counts is missing"):
        check(evaluated(), asked)
    with pytest.raises(ProtocolError, match=r"metrics_may_leave"):
        check(reply, asked, ExitRules(NAME, (), SITE.signer.public_key))
    closed = make_home(tmp_path / "closed", "metrics_may_leave: []")
    assert set(release(closed, asked, reply)) == {FACTS}
    assert "metrics_may_leave" in closed.log.read_text(encoding="utf-8")
    opened = make_home(tmp_path / "open")
    assert set(release(opened, asked, reply)) == {FACTS, COUNTS, "metrics"}


@pytest.mark.parametrize("shape", [(1, 2, 5), (8,), (2, 2, 4)])
def test_counts_of_another_shape_stay(shape: tuple[int, ...]) -> None:
    with pytest.raises(ProtocolError, match="expected int64"):
        check(evaluated(counts=True), incoming(train=False, counts_shape=shape))


def test_counts_are_whole_numbers_and_bounded() -> None:
    asked, reply = incoming(train=False, counts_shape=COUNTS_SHAPE), evaluated(counts=True)
    reply[COUNTS] = ArrayRecord({COUNTS: ones(*COUNTS_SHAPE)})
    with pytest.raises(ProtocolError, match="float32"):
        check(reply, asked)
    reply[COUNTS] = ArrayRecord({COUNTS: Array(np.full(COUNTS_SHAPE, 1 << 62))})
    with pytest.raises(ProtocolError, match="outside"):
        check(reply, asked)
    reply[COUNTS] = ArrayRecord({COUNTS: ones(*COUNTS_SHAPE, dtype=np.int64), "exact": ones(1)})
    with pytest.raises(ProtocolError, match="no histogram"):
        check(reply, asked)


@pytest.mark.parametrize(
    ("reply", "asked"),
    [
        (update(), incoming(train=False)),
        (evaluated(), incoming()),
        (update(), Incoming.unread()),
        (evaluated(), Incoming.unread()),
        (update(), Incoming.unread("a" * 64, RUN, 1)),
    ],
)
def test_only_an_answer_to_what_was_asked_may_leave(reply: RecordDict, asked: Incoming) -> None:
    with pytest.raises(ProtocolError, match="does not answer what was asked"):
        check(reply, asked)


def test_the_ledgers_head_is_this_sites_and_whole() -> None:
    reply, genuine = update(), str(update()[FACTS][HEAD_FACT])
    stranger = ExitRules(NAME, (), STRANGER.signer.public_key)
    with pytest.raises(ProtocolError, match="the ledger's head"):
        check(reply, incoming(), stranger)
    for text in (
        genuine + " ",
        genuine.replace('{"head"', '{"a":"patient 42","head"'),
        genuine.replace('"row', '"raw'),
        "[]",
        "null",
        "{" * 5000,
    ):
        facts(ledger_head=text)(reply)
        with pytest.raises(ProtocolError, match="the ledger's head"):
            check(reply, incoming())
    facts(ledger_head=None)(reply)
    check(reply, incoming())


def test_the_rules_are_not_needed_for_a_plain_refusal() -> None:
    """A site whose site.yaml is broken still says no."""

    def broken() -> ExitRules:
        raise InputError("site.yaml: broken")

    check_exit(refusal(), Incoming.unread(), broken)
    with pytest.raises(InputError):
        check_exit(update(), incoming(), broken)


def test_every_problem_is_said_at_once() -> None:
    reply = update()
    facts(loss=0.5, site=None)(reply)
    metrics(num_examples=3)(reply)
    with pytest.raises(ProtocolError, match=r"loss.*site.*num-examples"):
        check(reply, incoming())


@pytest.mark.parametrize("ids", [{"study_id": "x"}, {"run_id": "run-1"}, {"sha256": ""}, {"round": -1}, {"run_id": RUN + "\n"}])
def test_ids_from_outside_are_checked(ids: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError):
        Incoming(**ids)


def private(**changes: Any) -> Study:
    return small({**PRIVATE, "delta": 1e-5}, **changes)


def test_a_message_says_what_may_answer_it() -> None:
    study = private(evaluation={"private": {"epsilon": 1.0, "bins": 8}})
    asked = Incoming.of(instruction(), study)
    assert (asked.study_id, asked.run_id, asked.round, asked.sha256) == (study.id, RUN, 1, instruction().sha256)
    assert (asked.shapes, asked.counts_shape, asked.train) == ({"bias": (3,), "weight": (2, 3)}, None, True)
    last = study.federation.rounds
    assert Incoming.of(instruction(last, train=False), study).counts_shape == (1, 2, 8)
    assert Incoming.of(instruction(last - 1, train=False), study).counts_shape is None, "that round is not measured"
    assert Incoming.of(instruction(last, train=False), private()).counts_shape is None, "the study measures nothing"


def test_the_heads_are_no_part_of_the_payload_and_everything_else_is() -> None:
    reply = update()
    digest = payload_sha256(reply)
    assert payload_sha256(with_egress(reply, "text")) == digest
    assert egress_of(with_egress(reply, "text")) == "text"
    for change in (
        facts(loss=1.0),
        metrics(num_examples=2),
        metrics(num_examples=1, egress=5),
        tensor("bias", ones(3)),
        without("metrics"),
    ):
        other = update()
        change(other)
        assert payload_sha256(other) != digest
