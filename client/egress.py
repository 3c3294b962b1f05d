# SPDX-License-Identifier: Apache-2.0
"""The one door out of a hospital: nothing with content leaves but through `release`.

    check       only what is on the list (`client.egress_rules`); anything else becomes one refusal code, and the cause stays here
    line        one line in egress.jsonl about exactly these bytes, chained and durable (`client.egress_chain`)
    statement   the site's signature over study, run, round, message, bytes, and the head of the log before the line; it rides along

A crash before the line: nothing left, and no line says so. After it: the line is there although the reply may never have been sent; when
the reply is asked for again it gets a line of its own. So every byte that left has a line; not every line has left (`egress` shows which
of them the coordinator has acknowledged).
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

from flwr.app import ArrayRecord, RecordDict

from client.cohorts.exclusions import read_exclusions
from client.egress_chain import BEFORE_THE_FIRST, ChainEnd, EgressChain, EgressField, EgressLine, Kind
from client.egress_receipts import Taken, last_receipt_id, take_receipts
from client.egress_rules import ExitRules, Incoming, check_exit, kind_of, ledger_head
from client.egress_spent import Spent, spent_after, worst
from client.ledger.book import Ledger
from client.ledger.receipts import ReceiptFile
from client.site_config import SiteConfig
from client.site_home import SiteHome
from client.site_log import keep_room, log_failure
from common.crypto.secrets import Secret
from common.errors import WardroundError
from common.federation import EgressStatement
from common.privacy.charge_book import Line
from common.protocol import COUNTS, FACTS, Refusal, RefusalCode
from common.riders import RIDING_FACTS, is_refusal, payload_sha256, with_egress
from common.signed import Signed

__all__ = ["Incoming", "Taken", "last_receipt_id", "open_chain", "release", "take_receipts"]


def release(home: SiteHome, incoming: Incoming, reply: RecordDict, *, now: float | None = None, book: Ledger | None = None) -> RecordDict:
    """What may leave in answer to `incoming`: `reply`, or a refusal in its place, with the site's signed statement about it.

    When this returns, the line about exactly these bytes is durable. A reply that does not pass, or whose line cannot be written, becomes
    Refusal TRAINING_FAILED and is logged. `book`: the site's ledger, if the caller has it open; else it is read anew
    for the ε of the line. Safe to call again, in any process. Raises StorageError when not even the refusal's line can
    be written (disk full, log damaged, key missing): then nothing may leave; send nothing, and call again later if the message lives.
    """
    door = Door(home, Secret.read(home.key), time.time() if now is None else now, book)
    keep_room(home.folder)
    try:
        check_exit(reply, incoming, door.rules)
        return door.let_out(incoming, reply)
    except WardroundError as error:
        door.log(RefusalCode.TRAINING_FAILED, error)
    return door.let_out(incoming, Refusal(RefusalCode.TRAINING_FAILED, "").to_records())


def open_chain(home: SiteHome) -> EgressChain:
    """The log of what left. Raises StorageError when the site's key cannot be read."""
    return EgressChain(home.egress, Secret.read(home.key))


@dataclass(frozen=True)
class Door:
    """The door at one moment: `now` in seconds since the epoch."""

    home: SiteHome
    secret: Secret
    now: float
    book: Ledger | None = None

    def rules(self) -> ExitRules:
        """The site's own rules as they are now. Raises InputError."""
        config = SiteConfig.read(self.home.config)
        return ExitRules(config.name, config.metrics_may_leave, self.secret.signer.public_key)

    def let_out(self, incoming: Incoming, reply: RecordDict) -> RecordDict:
        """Write the line of a checked reply, durably, and attach the statement. Raises StorageError."""
        draft = self._draft(incoming, reply)
        signed: list[Signed] = []

        def make(end: ChainEnd) -> EgressLine:
            signed.append(statement_for(draft, end.number, end.hash).signed(self.secret.signer))
            facts = {"number": end.number + 1, "previous": end.hash, "torn_bytes": end.torn_bytes}
            return draft.model_copy(update={**facts, "statement_sha256": signed[-1].sha256})

        EgressChain(self.home.egress, self.secret).append(make, use_room=draft.kind == "refusal")
        return with_egress(reply, signed[-1].to_json())

    def _draft(self, incoming: Incoming, reply: RecordDict) -> EgressLine:
        """The line without its place in the chain."""
        fields = fields_of(reply)
        head = None if is_refusal(reply) else ledger_head(reply, self.secret.signer.public_key)
        row, digest = (None, None) if head is None else head
        return EgressLine(
            number=1,
            time=self.now,
            kind=cast(Kind, kind_of(reply)),
            study_id=incoming.study_id,
            run_id=incoming.run_id,
            round=incoming.round,
            code=str(reply[FACTS].get("code", "")),
            fields=fields,
            size_bytes=sum(field.size_bytes for field in fields if field.name not in _RIDING),
            incoming_sha256=incoming.sha256,
            payload_sha256=payload_sha256(reply),
            epsilon=self._spent(incoming, reply),
            ledger_row=row,
            ledger_hash=digest,
            exclusions=self._excluded(reply),
            previous=BEFORE_THE_FIRST,
        )

    def _excluded(self, reply: RecordDict) -> int | None:
        """How many patients are excluded, where policy has them counted; None for a refusal, and when the list cannot be read."""
        if is_refusal(reply):
            return None
        try:
            counted = SiteConfig.read(self.home.config).exclusions_in_egress_log
            return len(read_exclusions(self.home.folder).now) if counted else None
        except WardroundError as error:
            self.log(RefusalCode.NOT_READY, error)
            return None

    def _spent(self, incoming: Incoming, reply: RecordDict) -> Spent:
        """ε after this reply; "unknown" when the ledger cannot be read (the cause is logged): what was charged may leave."""
        if is_refusal(reply) or (kind_of(reply) == "evaluated" and COUNTS not in reply):
            return None
        lines = tuple(Line) if kind_of(reply) == "surveyed" else (Line.HELD_OUT if COUNTS in reply else Line.TRAINING,)
        try:
            book = self.book or Ledger(self.home.ledger, self.secret, ReceiptFile(self.home.receipts, self.secret, ()))
            return worst(spent_after(book, incoming.study_id, incoming.run_id, incoming.round, line) for line in lines)
        except WardroundError as error:
            self.log(RefusalCode.NOT_READY, error)
            return "unknown"

    def log(self, code: RefusalCode, error: WardroundError) -> None:
        """Write the cause to the site's own log; that it cannot be written must not change what leaves."""
        with suppress(OSError):
            log_failure(self.home.folder, code, error)


_RIDING = {f"{FACTS}/{name}" for name in RIDING_FACTS}


def fields_of(reply: RecordDict) -> tuple[EgressField, ...]:
    """Everything in a reply, value by value."""
    found: list[EgressField] = []
    for name, record in sorted(reply.items()):
        if isinstance(record, ArrayRecord):
            found += [EgressField(f"{name}/{key}", one.dtype, tuple(one.shape), len(one.data)) for key, one in sorted(record.items())]
        else:
            found += [EgressField(f"{name}/{key}", type(value).__name__, (), _size(value)) for key, value in sorted(record.items())]
    return tuple(found)


def statement_for(line: EgressLine, number: int, head: str) -> EgressStatement:
    """What the site says about the reply of `line`, whose predecessor has this number and hash."""
    return EgressStatement(
        study_id=line.study_id,
        run_id=line.run_id,
        round=line.round,
        incoming_sha256=line.incoming_sha256,
        payload_sha256=line.payload_sha256,
        number=number,
        head=head,
    )


def _size(value: object) -> int:
    return len(value.encode()) if isinstance(value, str) else 8
