# SPDX-License-Identifier: Apache-2.0
"""What the coordinator checks in a site's statement about a reply, and the receipts that it gives and keeps."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import RecordDict

from common.crypto.secrets import Secret
from common.errors import ProtocolError
from common.federation import NO_MESSAGE, NO_RUN, ApprovalRecord, EgressReceipt, EgressStatement
from common.protocol import FACTS, Evaluated, Refusal, RefusalCode, Update
from common.riders import egress_of, payload_sha256, with_egress, with_head
from common.signed import Record, Signed
from server import egress_receipts
from server.egress_receipts import Expected, check, check_and_receipt, receipts
from server.home import ServerHome
from server.state import State

SITE, OTHER, COORDINATOR = Secret(b"s" * 32), Secret(b"o" * 32), Secret(b"c" * 32)
STUDY, RUN = "a" * 64, "b" * 32
EXPECTED = Expected(STUDY, RUN, 3, "d" * 64)
Statement = dict[str, Any]


@dataclass(frozen=True)
class Registered:
    name: str


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    return ServerHome(tmp_path)


def update(value: float = 0.5, round_number: int = 3) -> RecordDict:
    reply = Update(RUN, round_number, "north", {"bias": np.full(3, value, np.float32)}).to_records()
    return with_head(reply, "a head")


def stated(reply: RecordDict, signer: Secret = SITE, **changes: Any) -> RecordDict:
    """The reply with the statement that the site makes about it, or one that was changed."""
    facts: Statement = {
        "study_id": STUDY,
        "run_id": RUN,
        "round": 3,
        "incoming_sha256": "d" * 64,
        "payload_sha256": payload_sha256(reply),
        "number": 7,
        "head": "e" * 64,
    }
    return with_egress(reply, EgressStatement.model_validate({**facts, **changes}).signed(signer.signer).to_json())


def examine(reply: RecordDict, expected: Expected = EXPECTED) -> Signed:
    return check(reply, SITE.signer.public_key, expected)


def receipted(home: ServerHome, reply: RecordDict, site: str = "north", now: float = 5.0) -> Signed:
    key = SITE.signer.public_key
    found = check_and_receipt(State(home.state), COORDINATOR.signer, site, reply, signing_key=key, expected=EXPECTED, now=now)
    assert found.statement.number == 7
    return found.receipt


@pytest.mark.parametrize(
    "reply",
    [update(), Evaluated(RUN, 3, "north", np.zeros((1, 2, 4), np.int64)).to_records(), Refusal(RefusalCode.PAUSED, "").to_records()],
)
def test_a_true_statement_passes(reply: RecordDict) -> None:
    found = stated(reply)
    assert examine(found).to_json() == egress_of(found)


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        pytest.param(update(), "has no egress statement", id="none"),
        pytest.param(with_egress(update(), "{}"), "cannot be read", id="unreadable"),
        pytest.param(stated(update(), OTHER), "the signature is not that of key", id="another site's key"),
        pytest.param(stated(update(), round=2), "is about another round", id="replayed from an earlier round"),
        pytest.param(stated(update(), run_id="c" * 32), "is about another run", id="from another run"),
        pytest.param(stated(update(), study_id="c" * 64), "is about another study", id="for another study"),
        pytest.param(stated(update(), incoming_sha256="f" * 64), "is about another message", id="to another message"),
        pytest.param(stated(update(), payload_sha256="f" * 64), "other bytes than those that arrived", id="other bytes"),
        pytest.param(stated(update(), round=2, study_id="c" * 64), "another study, is about another round", id="all said at once"),
        pytest.param(stated(update(), run_id=NO_RUN, study_id=NO_MESSAGE, round=0), "another study", id="content without a message"),
        pytest.param(stated(update(), incoming_sha256=NO_MESSAGE), "another message", id="content to an unread message"),
    ],
)
def test_every_other_statement_is_refused(home: ServerHome, reply: RecordDict, said: str) -> None:
    with pytest.raises(ProtocolError, match=said):
        examine(reply)
    with pytest.raises(ProtocolError, match=said):
        receipted(home, reply)
    assert receipts(home, Registered("north"), 0)["receipts"] == [], "and gets no receipt"


def test_statement_and_payload_swapped_between_two_replies() -> None:
    """Both replies and both statements are genuine; each under the other's is refused."""
    one, two = update(0.25), update(0.5)
    for payload, statement in ((one, stated(two)), (two, stated(one))):
        text = egress_of(statement)
        assert text is not None
        with pytest.raises(ProtocolError, match="other bytes"):
            examine(with_egress(payload, text))


@pytest.mark.parametrize("change", ["round", "value", "fact"])
def test_a_reply_that_was_changed_on_the_way(change: str) -> None:
    reply = stated(update())
    if change == "value":
        reply["model"] = update(0.75)["model"]
    elif change == "round":
        reply[FACTS]["round"] = 4
    else:
        reply[FACTS]["more"] = 1
    with pytest.raises(ProtocolError, match="other bytes"):
        examine(reply)


def test_the_ledgers_head_is_no_part_of_it() -> None:
    """It is signed by itself, and the coordinator does not read it."""
    examine(with_head(stated(update()), "another head"))


def test_a_signature_under_another_kind_of_record_is_none() -> None:
    class Lookalike(Record):
        purpose = ApprovalRecord.purpose
        study_id: str = STUDY
        run_id: str = RUN
        round: int = 3
        incoming_sha256: str = "d" * 64
        payload_sha256: str = payload_sha256(update())
        number: int = 7
        head: str = "e" * 64

    with pytest.raises(ProtocolError, match="the signature is not"):
        examine(with_egress(update(), Lookalike().signed(SITE.signer).to_json()))


@pytest.mark.parametrize("known", [{}, {"run_id": RUN, "study_id": STUDY}, {"run_id": RUN, "study_id": STUDY, "round": 3}])
def test_a_refusal_may_leave_out_what_the_site_did_not_learn(known: dict[str, Any]) -> None:
    unknown = {"study_id": NO_MESSAGE, "run_id": NO_RUN, "round": 0, "incoming_sha256": NO_MESSAGE}
    examine(stated(Refusal(RefusalCode.STUDY_NOT_APPROVED, "").to_records(), **{**unknown, **known}))
    for wrong in ({"study_id": "9" * 64}, {"run_id": "9" * 32}, {"round": 2}, {"incoming_sha256": "9" * 64}):
        with pytest.raises(ProtocolError, match="is about another"):
            examine(stated(Refusal(RefusalCode.PAUSED, "").to_records(), **{**unknown, **wrong}))


def test_a_receipt_is_for_that_statement_and_kept_once(home: ServerHome) -> None:
    reply = stated(update())
    signed = receipted(home, reply)
    receipt = EgressReceipt.verified(signed, COORDINATOR.signer.public_key)
    text = egress_of(reply)
    assert text is not None
    digest = hashlib.sha256(text.encode()).hexdigest()
    assert receipt == EgressReceipt(site="north", statement_sha256=digest, number=7, head="e" * 64, received=5.0)
    assert receipted(home, reply, now=9.0) == signed, "the same reply delivered twice"
    found = receipts(home, Registered("north"), 0)["receipts"]
    assert found == [{"id": 1, "statement": json.loads(text), "receipt": json.loads(signed.to_json())}]


def test_a_site_gets_its_own_receipts_and_no_others(home: ServerHome) -> None:
    replies = [stated(update(value)) for value in (0.1, 0.2, 0.3)]
    for site, reply in zip(("north", "south", "north"), replies, strict=True):
        receipted(home, reply, site)
    ids = lambda site, after: [one["id"] for one in receipts(home, Registered(site), after)["receipts"]]  # noqa: E731
    assert (ids("north", 0), ids("north", 1), ids("north", 3), ids("north", -5)) == ([1, 3], [3], [], [1, 3])
    assert (ids("south", 0), ids("west", 0)) == ([2], [])


def test_many_receipts_come_in_parts(home: ServerHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(egress_receipts, "MOST_AT_ONCE", 2)
    for value in range(5):
        receipted(home, stated(update(value)))
    parts, after = [], 0
    while found := receipts(home, Registered("north"), after)["receipts"]:
        parts.append(len(found))
        after = found[-1]["id"]
    assert parts == [2, 2, 1]


def test_a_large_answer_stays_below_what_a_client_reads(home: ServerHome) -> None:
    receipted(home, stated(update()))
    (one,) = receipts(home, Registered("north"), 0)["receipts"]
    assert len(json.dumps(one)) * egress_receipts.MOST_AT_ONCE < 4 * 1024 * 1024


def test_an_answer_is_plain_json(home: ServerHome) -> None:
    receipted(home, stated(update()))
    check_plain: Callable[[object], object] = lambda answer: json.loads(json.dumps(answer))  # noqa: E731
    answer = receipts(home, Registered("north"), 0)
    assert check_plain(answer) == answer
