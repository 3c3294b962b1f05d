# SPDX-License-Identifier: Apache-2.0
"""Receipts for what a site says about each of its replies.

A reply carries the site's signed statement: this study, run and round, in answer to that message, these bytes, and the head of the
site's egress log before this reply's line. `check` believes nothing: the signature is that of the site's registered key, the facts are
those of the round, and the digest is that of the reply as it arrived. `issue` signs a receipt and keeps it with the statement; the site
fetches both (`receipts`) and can show from then on that its log has not been cut or rewritten up to there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Final, Protocol

from flwr.app import RecordDict

from common.crypto.signatures import Signer
from common.errors import ProtocolError
from common.federation import NO_MESSAGE, NO_RUN, EgressReceipt, EgressStatement
from common.riders import egress_of, is_refusal, payload_sha256
from common.signed import Signed
from server.home import ServerHome
from server.receipts import newest_receipt
from server.state import State

MOST_AT_ONCE: Final = 1000
"""Receipts in one answer; a site asks again for the rest."""


class Named(Protocol):
    """A registered site (`server.sites.RegisteredSite`)."""

    @property
    def name(self) -> str:
        """The name in its certificate."""


@dataclass(frozen=True)
class Expected:
    """What a statement has to be about: the run's study and id, the round, and `Instruction.sha256` of the message that was sent."""

    study_id: str
    run_id: str
    round: int
    incoming_sha256: str


@dataclass(frozen=True)
class Receipted:
    """A statement that was checked, and the receipt for it."""

    statement: EgressStatement
    receipt: Signed


def check_and_receipt(
    state: State, signer: Signer, site: str, records: RecordDict, *, signing_key: str, expected: Expected, now: float
) -> Receipted:
    """Check the statement that rides on a reply of `site` and give the receipt for it. Raises ProtocolError, StorageError."""
    signed = check(records, signing_key, expected)
    statement = EgressStatement.verified(signed, signing_key)
    return Receipted(statement, issue(state, signer, site, signed, statement, now))


def check(records: RecordDict, signing_key: str, expected: Expected) -> Signed:
    """The statement that rides on a reply, if all of it is true of that reply. `signing_key` is the site's, hexadecimal.

    A refusal may leave out what the site did not learn (`common.federation.NO_MESSAGE`, `NO_RUN`, round 0). Raises ProtocolError.
    """
    text = egress_of(records)
    if text is None:
        raise ProtocolError("reply: has no egress statement; the site's client is too old or was changed")
    signed = Signed.from_json(text)
    statement = EgressStatement.verified(signed, signing_key)
    problems = [f"is about another {name}" for name in _strange(statement, expected, may_be_unknown=is_refusal(records))]
    if statement.payload_sha256 != payload_sha256(records):
        problems.append("is about other bytes than those that arrived")
    if problems:
        raise ProtocolError(f"reply: its egress statement {', '.join(problems)}")
    return signed


def _strange(statement: EgressStatement, expected: Expected, *, may_be_unknown: bool) -> list[str]:
    facts = (
        ("study", statement.study_id, expected.study_id, NO_MESSAGE),
        ("run", statement.run_id, expected.run_id, NO_RUN),
        ("round", statement.round, expected.round, 0),
        ("message", statement.incoming_sha256, expected.incoming_sha256, NO_MESSAGE),
    )
    return [name for name, found, wanted, unknown in facts if found != wanted and not (may_be_unknown and found == unknown)]


def issue(state: State, signer: Signer, site: str, signed: Signed, statement: EgressStatement, now: float) -> Signed:
    """The receipt for a checked statement, stored; the same statement again gets the same receipt. Raises StorageError."""
    text = signed.to_json()
    with state.writing() as database:
        known = database.execute(
            "SELECT receipt FROM egress_receipt WHERE site = ? AND run_id = ? AND round = ? AND statement = ?",
            (site, statement.run_id, statement.round, text),
        ).fetchone()
        if known is not None:
            return Signed.from_json(known["receipt"])
        receipt = EgressReceipt(
            site=site,
            statement_sha256=signed.sha256,
            number=statement.number,
            head=statement.head,
            received=now,
        ).signed(signer)
        database.execute(
            "INSERT INTO egress_receipt (site, run_id, round, statement, receipt) VALUES (?, ?, ?, ?, ?)",
            (site, statement.run_id, statement.round, text, receipt.to_json()),
        )
    return receipt


def receipts(home: ServerHome, site: Named, after: int) -> dict[str, Any]:
    """The answer to `GET /v1/wardround/receipts?after=N`: this site's statements and receipts numbered above `after`, oldest first.

    `{"receipts": [{"id": N, "statement": Signed, "receipt": Signed}, …], "ledger": text}`, at most `MOST_AT_ONCE` of the first; `ledger`
    is the receipt for the newest head of the site's ledger, null before the first. Raises StorageError.
    """
    with State(home.state).reading() as database:
        rows = database.execute(
            "SELECT id, statement, receipt FROM egress_receipt WHERE site = ? AND id > ? ORDER BY id LIMIT ?",
            (site.name, max(after, 0), MOST_AT_ONCE),
        ).fetchall()
    return {
        "ledger": newest_receipt(home.folder, site.name),
        "receipts": [{"id": row["id"], "statement": json.loads(row["statement"]), "receipt": json.loads(row["receipt"])} for row in rows],
    }
