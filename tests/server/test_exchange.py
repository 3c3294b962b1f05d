# SPDX-License-Identifier: Apache-2.0
"""Replies one at a time; with keys, a reply counts only with its site's signature."""

import gc
import json
import weakref
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from common.crypto.secrets import Secret
from common.federation import EgressStatement
from common.flower_compat.identity import assume_server_identity
from common.flower_compat.messages import give_message_id
from common.protocol import Instruction, Refusal, RefusalCode, Update
from common.riders import payload_sha256, with_egress, with_head
from server.exchange import Node, exchange
from server.receipts import Receipts, newest_receipt
from server.state import State
from server.statements import Statements

KEYS = {name: Secret(name.encode() * 8) for name in ("nort", "sout", "west")}
SITES = tuple(KEYS)
STUDY_ID, RUN_ID = "5" * 64, "a" * 32
INSTRUCTION = Instruction(RUN_ID, "{}", 3, True, False, {"w": np.ones(4, np.float32)})


class Grid:
    """Answers each message at once with what `reply` makes of its site; notes how many replies are alive at a time."""

    def __init__(self, reply) -> None:
        assume_server_identity(1)
        self._reply, self._waiting = reply, {}
        self.alive, self.most_alive = weakref.WeakSet(), 0

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        names = []
        for message in messages:
            names.append(give_message_id(message))
            self._waiting[names[-1]] = message
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for name in list(message_ids):
            message = self._waiting.pop(name, None)
            if message is not None:
                reply = Message(self._reply(SITES[message.metadata.dst_node_id - 1], message), reply_to=message)
                gc.collect()
                self.alive.add(reply)
                self.most_alive = max(self.most_alive, len(self.alive))
                yield reply
                del reply


def statements(folder: Path) -> Statements:
    keys = {name: secret.signer.public_key for name, secret in KEYS.items() if name != "west"}
    return Statements(State(folder / "state.sqlite"), Secret(b"c" * 32).signer, STUDY_ID, keys)


def update(site: str) -> RecordDict:
    return Update(RUN_ID, 3, site, {"w": np.full(4, 2.0, np.float32)}).to_records()


def signed(records: RecordDict, site: str, by: str | None = None, **changes: object) -> RecordDict:
    facts = {
        "study_id": STUDY_ID,
        "run_id": RUN_ID,
        "round": 3,
        "incoming_sha256": INSTRUCTION.sha256,
        "payload_sha256": payload_sha256(records),
        "number": 4,
        "head": "d" * 64,
    }
    statement = EgressStatement.model_validate({**facts, **changes})
    return with_egress(records, statement.signed(KEYS[by or site].signer).to_json())


def answers(folder: Path, reply, checked: bool = True) -> dict:
    nodes = [Node(number, name) for number, name in enumerate(SITES, 1)]
    found = exchange(Grid(reply), nodes, INSTRUCTION, 5.0, None, None, statements(folder) if checked else None)  # type: ignore[arg-type]
    return {answer.site: answer for answer in found}


def test_a_signed_reply_counts_and_is_receipted(tmp_path: Path) -> None:
    found = answers(tmp_path, lambda site, _: signed(update(site), site))
    north = found["nort"]
    assert isinstance(north.reply, Update)
    assert north.witnessed.payload_sha256 == payload_sha256(update("nort"))
    assert (north.witnessed.egress_number, north.witnessed.egress_head) == (4, "d" * 64)
    assert json.loads(json.loads(north.witnessed.receipt)["record"])["site"] == "nort"
    assert (north.bytes_down, north.bytes_up >= 16) == (16, True)
    assert found["west"].reply == Refusal(RefusalCode.REPLY_INVALID, "west"), "its key is not known in this run"


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (lambda site: update(site), "no egress statement"),
        (lambda site: signed(update(site), site, by="west"), "signature"),
        (lambda site: signed(update(site), site, run_id="b" * 32), "another run"),
        (lambda site: signed(update(site), site, round=2), "another round"),
        (lambda site: signed(update(site), site, incoming_sha256="0" * 64), "another message"),
        (lambda site: signed(update(site), site, payload_sha256="0" * 64), "other bytes"),
    ],
)
def test_a_reply_without_a_true_statement_does_not_count(tmp_path: Path, bad, why: str) -> None:
    found = answers(tmp_path, lambda site, _: signed(update(site), site) if site == "nort" else bad(site))
    assert isinstance(found["nort"].reply, Update)
    assert found["sout"].reply == Refusal(RefusalCode.REPLY_INVALID, "sout")
    assert why in found["sout"].reason
    assert found["sout"].witnessed is None


def test_a_refusal_stays_what_it_is(tmp_path: Path) -> None:
    refusal = Refusal(RefusalCode.BUDGET_EXHAUSTED, "sout").to_records()
    unsigned = answers(tmp_path, lambda site, _: refusal)["sout"]
    assert unsigned.reply == Refusal(RefusalCode.BUDGET_EXHAUSTED, "sout")
    assert "no egress statement" in unsigned.reason
    unknown = {"run_id": "0" * 32, "round": 0, "incoming_sha256": "0" * 64, "study_id": "0" * 64}
    named = answers(tmp_path, lambda site, _: signed(Refusal(RefusalCode.PAUSED, site).to_records(), site, **unknown))["sout"]
    assert named.reply == Refusal(RefusalCode.PAUSED, "sout")
    assert named.witnessed is not None


def test_without_keys_nothing_has_to_be_signed(tmp_path: Path) -> None:
    found = answers(tmp_path, lambda site, _: update(site), checked=False)
    assert all(isinstance(answer.reply, Update) and answer.witnessed is None for answer in found.values())


def test_one_reply_is_in_memory_at_a_time() -> None:
    grid = Grid(lambda site, _: update(site))
    seen = 0
    for answer in exchange(grid, [Node(1, "nort"), Node(2, "sout"), Node(3, "west")], INSTRUCTION, 5.0):  # type: ignore[arg-type]
        assert isinstance(answer.reply, Update)
        seen += 1
        del answer
    assert (seen, grid.most_alive) == (3, 1)


def test_heads_of_two_runs_do_not_push_each_other_out(tmp_path: Path) -> None:
    def head(text: str) -> RecordDict:
        records = update("nort")
        records["wardround"] = ConfigRecord({**records["wardround"], "ledger_head": text})
        return records

    one, other = Receipts(tmp_path), Receipts(tmp_path)
    one.take("nort", head("older"))
    one.take("west", head("of west"))
    other.take("nort", head("newer"))
    other.save()
    one.save()
    stored = json.loads((tmp_path / "ledger-heads.json").read_text())
    assert (stored["nort"][0], stored["west"][0]) == ("newer", "of west")
    (tmp_path / "ledger-heads.json").write_text(json.dumps({"nort": "written by an older version"}))
    assert Receipts(tmp_path).attach("nort", update("nort")) != update("nort")


def test_a_hospitals_ledger_head_lasts_before_the_next_reply_is_looked_at(tmp_path: Path) -> None:
    """A server that dies in the middle of a round still knows it."""
    kept = Receipts(tmp_path)
    nodes = [Node(number, name) for number, name in enumerate(SITES[:2], 1)]
    grid = Grid(lambda site, _: signed(with_head(update(site), f"head of {site}"), site))
    seen = []
    for answer in exchange(grid, nodes, INSTRUCTION, 5.0, None, kept, statements(tmp_path)):  # type: ignore[arg-type]
        receipt = newest_receipt(tmp_path, answer.site)
        seen.append(None if receipt is None else json.loads(receipt)["head"])
    assert seen == ["head of nort", "head of sout"]
