# SPDX-License-Identifier: Apache-2.0
"""Patients, and the account that each belongs to.

A patient is a pseudonym, HMAC-SHA256(site key, patient id), whatever a cohort is called. Cohorts that share a patient share an account;
accounts that come to share one are merged, and the merged account has paid what both paid. Each patient is registered on the line that
it may pay on. Where one patient stands on both lines (a split that changed), the account's two lines count as one.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from client.ledger.database import Patients
from client.ledger.rows import MergeEntry, PatientsEntry
from client.pseudonyms import digest_of
from common.errors import StorageError
from common.privacy.charge_book import Line


@dataclass(frozen=True)
class Registration:
    """What has to be written so that a cohort's patients have one account. No entries: all of it is known."""

    account: str
    merges: tuple[MergeEntry, ...] = ()
    patients_entry: PatientsEntry | None = None
    patients: Patients = field(default_factory=dict)


class Accounts:
    """The accounts that a sequence of rows leads to."""

    def __init__(self) -> None:
        self._parents: dict[str, str] = {}  # an account to what it was merged into, or to itself
        self._deltas: dict[str, float] = {}
        self._owners: dict[bytes, str] = {}
        self._lines: dict[bytes, set[Line]] = {}
        self._joint: set[str] = set()

    @property
    def names(self) -> list[str]:
        """Accounts that are not part of another, oldest first."""
        return [account for account, parent in self._parents.items() if account == parent]

    @property
    def roots(self) -> dict[str, str]:
        """Every account that ever was, and what it is part of now."""
        return {account: self.root(account) for account in self._parents}

    def root(self, account: str) -> str:
        """The account that `account` is part of now. An unknown account is its own."""
        while self._parents.get(account, account) != account:
            account = self._parents[account]
        return account

    def is_known(self, account: str) -> bool:
        """Whether patients were registered on it."""
        return account in self._parents

    def is_joint(self, account: str) -> bool:
        """Whether its two lines count as one."""
        return any(self.root(joint) == self.root(account) for joint in self._joint)

    def delta(self, account: str) -> float:
        """δ of an account; of a merged one the smallest of its parts."""
        return min(delta for part, delta in self._deltas.items() if self.root(part) == self.root(account))

    def patient_count(self, account: str, line: Line) -> int:
        """How many patients of an account may pay on a line. Private."""
        return sum(line in self._lines[each] and self.root(owner) == self.root(account) for each, owner in self._owners.items())

    def plan(self, patients: Patients, delta: float) -> Registration:
        """How to give `patients` one account."""
        known = {self.root(self._owners[patient]) for line in patients.values() for patient in line if patient in self._owners}
        found = [account for account in self.names if account in known]
        account = found[0] if found else secrets.token_hex(16)
        new = {line: frozenset(each for each in members if line not in self._lines.get(each, ())) for line, members in patients.items()}
        new = {line: members for line, members in new.items() if members}
        entry = PatientsEntry(account, delta, patients_sha256(new)) if new else None
        return Registration(account, tuple(MergeEntry(other, account) for other in found[1:]), entry, new)

    def merge(self, entry: MergeEntry) -> None:
        """Take over a merge. Raises StorageError for one that could not have been written."""
        if entry.account not in self.names or entry.into not in self.names or entry.account == entry.into:
            raise StorageError(f"ledger: account {entry.account[:12]} cannot become part of {entry.into[:12]}; restore it from its backup")
        self._parents[entry.account] = entry.into

    def register(self, entry: PatientsEntry, patients: Patients) -> None:
        """Take over patients. Raises StorageError when the side table does not hold what the row says."""
        if patients_sha256(patients) != entry.patients_sha256:
            raise StorageError(f"ledger: the patients of account {entry.account[:12]} were changed; restore the ledger from its backup")
        self._parents.setdefault(entry.account, entry.account)
        self._deltas[entry.account] = min(entry.delta, self._deltas.get(entry.account, entry.delta))
        for line, members in patients.items():
            for patient in members:
                self._owners[patient] = entry.account
                self._lines.setdefault(patient, set()).add(line)
                if len(self._lines[patient]) > 1:
                    self._joint.add(entry.account)


def pseudonyms(key: bytes, patient_ids: Iterable[str]) -> frozenset[bytes]:
    """What stands for patients in the ledger: HMAC-SHA256 of each id, 32 bytes; a pseudonym stands for the patient that it was made of."""
    return frozenset(digest_of(key, patient) for patient in patient_ids)


def patients_sha256(patients: Patients) -> str:
    """Digest of patients on their lines."""
    names = sorted(f"{line} {each.hex()}" for line, members in patients.items() for each in members)
    return hashlib.sha256("\n".join(names).encode()).hexdigest()
