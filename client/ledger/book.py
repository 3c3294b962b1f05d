# SPDX-License-Identifier: Apache-2.0
"""The ledger as a site uses it: a charge book whose rows last, and which knows when it was rolled back."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from typing_extensions import override

from client.ledger.accounts import Registration, pseudonyms
from client.ledger.database import (
    LedgerFile,
    Patients,
    add_row,
    check_integrity,
    check_schema,
    hash_of,
    patients_of,
    rows_after,
)
from client.ledger.earmarks import Promise
from client.ledger.fold import LedgerFold
from client.ledger.heads import Receipt, signed_head
from client.ledger.receipts import ReceiptFile
from client.ledger.rows import ChargeEntry, EarmarkEntry, Entry, Row
from client.ledger.witnesses import NoWitness, Sighting, Witness
from common.crypto.secrets import Secret
from common.errors import InputError, RefusedError
from common.privacy.charge_book import (
    BUDGET_EXHAUSTED,
    CHARGE_STATE,
    Charge,
    ChargeBook,
    ChargeKey,
    Line,
    Standing,
    State,
    check_digest,
    check_event,
)

LEDGER_BEHIND: Final = "LEDGER_BEHIND"
MAC_PURPOSE: Final = "ledger rows"
PSEUDONYM_PURPOSE: Final = "patient pseudonyms"
Draft = tuple[Entry, Patients]
"""A row that is about to be written, and the patients that come with it."""


class Ledger(ChargeBook):
    """The ledger in the file `path`, made at the first row. Only rows that are new since the last call are read and checked.

    It must not be behind its receipts, nor behind what `witness` has seen.
    """

    def __init__(self, path: Path, secret: Secret, receipts: ReceiptFile, witness: Witness | None = None) -> None:
        self._file = LedgerFile(path)
        self._secret = secret
        self._mac_key = secret.derive(MAC_PURPOSE)
        self._receipts = receipts
        self._witness = NoWitness() if witness is None else witness
        self._fold = LedgerFold(self._mac_key)
        self._fresh: set[ChargeKey] = set()  # reserved by this object and not asked for again: only these can be settled

    @override
    def reserve(self, key: ChargeKey, event_json: str, steps: int) -> Standing:
        """See `ChargeBook`. Raises RefusedError LEDGER_BEHIND too, and BUDGET_EXHAUSTED for an account that IT wrote off."""
        check_event(event_json, steps)
        with self._writing() as drafts:
            self._check_open(key.account)
            standing = self._fold.charge_fold.standing(key, event_json, steps)
            if standing is Standing.NEW:
                drafts.append((ChargeEntry(Charge(key, State.RESERVED, event_json, steps)), {}))
        if standing is Standing.NEW:
            self._fresh.add(key)
        else:
            self._fresh.discard(key)
            self._file.make_durable()
        return standing

    @override
    def releasing(self, key: ChargeKey, reply_sha256: str) -> None:
        """See `ChargeBook`."""
        check_digest(reply_sha256)
        self._move(key, State.RELEASING, reply_sha256)

    @override
    def sent(self, key: ChargeKey) -> None:
        """See `ChargeBook`."""
        self._move(key, State.SENT)

    @override
    def settle_to_zero(self, key: ChargeKey) -> None:
        """See `ChargeBook`."""
        if key not in self._fresh:
            raise RefusedError(CHARGE_STATE, f"round {key.round} of run {key.run_id} may have been trained before, so its charge stays")
        self._move(key, State.SETTLED)

    @override
    def charges(self) -> list[Charge]:
        """See `ChargeBook`."""
        return self.fold().charge_fold.charges

    @override
    def history(self, account: str, line: Line) -> list[Charge]:
        """See `LedgerFold.history`."""
        return self.fold().history(account, line)

    def promises(self, account: str, line: Line) -> list[Promise]:
        """See `LedgerFold.promises`."""
        return self.fold().promises(account, line)

    def earmark(self, entries: Sequence[EarmarkEntry], check: Callable[[LedgerFold], None] | None = None) -> None:
        """Promise a study its whole plan, or withdraw it; what stands so already writes no row.

        `check` raises RefusedError when it does not fit; nobody writes between it and the rows. Raises RefusedError LEDGER_BEHIND too, and
        BUDGET_EXHAUSTED for an account that IT wrote off, but a promise can always be withdrawn.
        """
        with self._writing() as drafts:
            fold = self._fold
            for entry in entries:
                if entry.count:
                    self._check_open(entry.account)
            if check is not None:
                check(fold)
            drafts += [(entry, {}) for entry in entries if fold.earmarks.changes(entry)]

    def register(self, patients: Mapping[Line, Iterable[str]], delta: float) -> str:
        """The account of the patients with these ids, each on the line that it may pay on.

        Accounts that share a patient with them are merged. `delta` becomes δ of a new account, for good. Raises InputError when there is
        no patient.
        """
        key = self._secret.derive(PSEUDONYM_PURPOSE)
        members = {line: pseudonyms(key, identifiers) for line, identifiers in patients.items()}
        if not any(members.values()):
            raise InputError("ledger: a cohort without patients has no account")
        with self._writing() as drafts:
            registration = self._fold.accounts.plan(members, delta)
            drafts += _drafts(registration)
        return registration.account

    def delta(self, account: str) -> float:
        """δ at which all studies of an account are accounted."""
        return self.fold().accounts.delta(account)

    def check_not_behind(self) -> None:
        """Raises RefusedError LEDGER_BEHIND when a receipt or a witness shows rows that this ledger lacks."""
        sightings = self.sightings()  # before the rows: whoever shows a row saw it after it was written
        _check_not_behind(self.fold(), sightings)

    def unanswered(self) -> list[Sighting]:
        """What shows that this ledger is behind; empty when it is not."""
        sightings = self.sightings()
        return _unanswered(self.fold(), sightings)

    def sightings(self) -> list[Sighting]:
        """Every head that this ledger must have, or must have answered: of receipts, and of what its witness has seen."""
        receipts = [
            Sighting(one.id, f"a receipt shows row {one.row} with hash {one.hash[:12]}…, this ledger lacks it")
            for one in self._receipts.receipts()
        ]
        return [*receipts, *self._witness.sightings()]

    def lacking(self, fold: LedgerFold) -> list[Receipt]:
        """Receipts for rows that are not in the ledger and were not answered."""
        receipts = {receipt.id: receipt for receipt in self._receipts.receipts()}
        return [receipts[one] for one in fold.lacks(receipts)]

    def receipts(self) -> list[Receipt]:
        """All receipts that are believed."""
        return self._receipts.receipts()

    def rows(self) -> list[Row]:
        """All rows as they are stored."""
        with self._file.reading() as database:
            return [] if database is None else list(rows_after(database, 0))

    def check_storage(self) -> None:
        """Let SQLite check its file. Raises StorageError."""
        with self._file.reading() as database:
            if database is not None:
                check_integrity(database)

    def take_receipt(self, text: str) -> None:
        """Keep a receipt that came with an instruction. Raises ProtocolError when it is not to be believed."""
        self._receipts.add(text)

    def signed_head(self) -> str:
        """The head as it is now, for the reply that leaves."""
        from client.ledger.summary import summarise

        fold = self.fold()
        return signed_head(self._secret, fold.number, fold.head, summarise(fold))

    def fold(self) -> LedgerFold:
        """Everything that the rows say, as of now. Raises StorageError for damage, RefusedError LEDGER_BEHIND for a rollback in use."""
        with self._file.reading() as database:
            self._refresh(database)
        return self._fold

    @contextmanager
    def writing(self) -> Iterator[tuple[LedgerFold, list[Entry]]]:
        """For recovery: entries that are put into the list are written together, durably, at the end of the block."""
        entries: list[Entry] = []
        with self._writing() as drafts:
            yield self._fold, entries
            drafts += [(entry, {}) for entry in entries]

    def _move(self, key: ChargeKey, state: State, reply_sha256: str | None = None) -> None:
        with self._writing() as drafts:
            charge = self._fold.charge_fold.moved(key, state, reply_sha256)
            if charge is not None:
                drafts.append((ChargeEntry(charge), {}))

    def _check_open(self, account: str) -> None:
        _check_not_behind(self._fold, self.sightings())
        if not self._fold.accounts.is_known(account):
            raise InputError(f"ledger: account {account[:40]} has no patients; register the cohort first")
        if self._fold.is_written_off(account):
            raise RefusedError(BUDGET_EXHAUSTED, f"account {account[:12]} was written off by IT")

    @contextmanager
    def _writing(self) -> Iterator[list[Draft]]:
        """A transaction: the fold is up to date, and drafts put into the list are rows when the block has ended without an error."""
        drafts: list[Draft] = []
        done = True
        try:
            with self._file.writing() as database:
                self._refresh(database)
                yield drafts
                done = not drafts
                for entry, patients in drafts:
                    row = Row.following(self._fold.number, self._fold.head, entry, self._mac_key)
                    add_row(database, row, patients)
                    self._fold.take(row, patients)
            done = True
        finally:
            if not done:  # the file does not have what was folded; it is read anew
                self._fold = LedgerFold(self._mac_key)

    def _refresh(self, database: sqlite3.Connection | None) -> None:
        """Read what is new. The row that was last here must still be there."""
        here = self._fold.number
        if here and (database is None or hash_of(database, here) != self._fold.head):
            raise RefusedError(
                LEDGER_BEHIND,
                f"row {here} is not in the ledger any more: an old copy took its place while in use; "
                "after `ledger recover`, restart the client",
            )
        if database is None:
            return
        check_schema(database)
        for row in list(rows_after(database, here)):
            self._fold.take(row, patients_of(database, row.number))


def _unanswered(fold: LedgerFold, sightings: Iterable[Sighting]) -> list[Sighting]:
    by_id = {one.id: one for one in sightings}
    return [by_id[one] for one in fold.lacks(by_id)]


def _check_not_behind(fold: LedgerFold, sightings: Iterable[Sighting]) -> None:
    lacking = _unanswered(fold, sightings)
    if lacking:
        newest = max(lacking, key=lambda one: one.id[0])
        raise RefusedError(
            LEDGER_BEHIND,
            f"{newest.what}: it was restored from an old copy. Nothing trains until `wardround-client ledger recover` has charged what is "
            "missing",
        )


def _drafts(registration: Registration) -> list[Draft]:
    drafts: list[Draft] = [(merge, {}) for merge in registration.merges]
    if registration.patients_entry is not None:
        drafts.append((registration.patients_entry, registration.patients))
    return drafts
