# SPDX-License-Identifier: Apache-2.0
"""What all rows of a ledger together come to. Each row is checked before it counts."""

from __future__ import annotations

from collections.abc import Iterable

from client.ledger.accounts import Accounts
from client.ledger.database import Patients
from client.ledger.earmarks import Earmarks, Promise
from client.ledger.rows import (
    BEFORE_THE_FIRST,
    ChargeEntry,
    EarmarkEntry,
    Entry,
    MergeEntry,
    PatientsEntry,
    ReceiptId,
    Row,
    WriteOffEntry,
)
from common.errors import RefusedError, StorageError
from common.privacy.charge_book import Charge, ChargeFold, Line, Slot, State

TAG_LENGTH = 8
UNKNOWN_MESSAGE = "0" * (64 - TAG_LENGTH)
"""A recovered charge has no known message; the digits after these are the tag of the row that was lost."""


class LedgerFold:
    """The state after the rows 1 to `number`, whose last hash is `head`. `key` checks the MACs."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.number = 0
        self.accounts = Accounts()
        self.charge_fold = ChargeFold(lambda left, right: self.accounts.root(left) == self.accounts.root(right))
        self.answered: set[ReceiptId] = set()
        self.written_off: dict[str, str] = {}  # account to reason
        self.earmarks = Earmarks()
        self.registrations: dict[str, list[str]] = {}  # account to the tags of its rows of patients
        self._hashes = [BEFORE_THE_FIRST]
        self._reserved_by: dict[Slot, str] = {}

    @property
    def head(self) -> str:
        """Hash of the last row."""
        return self._hashes[-1]

    def take(self, row: Row, patients: Patients) -> None:
        """Count the next row in. Raises StorageError when it is not the row that can come next."""
        entry = row.entry(self.number, self.head, self._key)
        try:
            self._apply(entry, row.hash, patients)
        except RefusedError as error:
            raise StorageError(f"ledger: row {row.number} could not have been written ({error}); restore it from its backup") from error
        self.number += 1
        self._hashes.append(row.hash)

    def _apply(self, entry: Entry, digest: str, patients: Patients) -> None:
        if isinstance(entry, ChargeEntry):
            self.charge_fold.apply(entry.charge)
            if entry.charge.state is State.RESERVED:
                self._reserved_by[entry.charge.key.slot] = digest
        elif isinstance(entry, PatientsEntry):
            self.accounts.register(entry, patients)
            self.registrations.setdefault(entry.account, []).append(digest[:TAG_LENGTH])
        elif isinstance(entry, MergeEntry):
            self.accounts.merge(entry)
        elif isinstance(entry, EarmarkEntry):
            self.earmarks.apply(entry, self.accounts.is_known(entry.account))
        else:
            self.answered |= set(entry.receipts)
            if isinstance(entry, WriteOffEntry):
                self.written_off[entry.account] = entry.reason

    def tag(self, charge: Charge) -> str:
        """What tells the row that reserved `charge` from any other: the start of its hash, also when that row was lost."""
        message = charge.key.message_sha256
        return message[-TAG_LENGTH:] if message.startswith(UNKNOWN_MESSAGE) else self._reserved_by[charge.key.slot][:TAG_LENGTH]

    def lacks(self, receipts: Iterable[ReceiptId]) -> list[ReceiptId]:
        """Those receipts whose row is not in this ledger and was not answered by a recovery or a write-off."""
        return [one for one in receipts if one not in self.answered and not self._has(one)]

    def _has(self, receipt: ReceiptId) -> bool:
        number, digest = receipt
        return 0 <= number <= self.number and self._hashes[number] == digest

    def is_written_off(self, account: str) -> bool:
        """Whether IT closed the account, or a part of it."""
        return any(self.accounts.root(closed) == self.accounts.root(account) for closed in self.written_off)

    def history(self, account: str, line: Line) -> list[Charge]:
        """What an account paid on a line (on both, where they count as one).

        Charges whose patients are not known any more (recovered after a restore) count for every account.
        """
        root, joint = self.accounts.root(account), self.accounts.is_joint(account)
        return [
            charge
            for charge in self.charge_fold.charges
            if (joint or charge.key.line is line)
            and (self.accounts.root(charge.key.account) == root or not self.accounts.is_known(charge.key.account))
        ]

    def promises(self, account: str, line: Line) -> list[Promise]:
        """What studies may still spend of an account on a line (on both, where they count as one)."""
        root, joint = self.accounts.root(account), self.accounts.is_joint(account)
        return [
            promise
            for promise in self.earmarks.promises(self.charge_fold.charges)
            if (joint or promise.earmark.line is line) and self.accounts.root(promise.earmark.account) == root
        ]
