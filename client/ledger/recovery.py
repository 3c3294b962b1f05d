# SPDX-License-Identifier: Apache-2.0
"""What hospital IT does after a restore: charge again what the ledger lost, or close an account for good.

A restored ledger is behind its receipts, and nothing trains. `recover` reads the summaries in those receipts and writes one row for each
charge that is missing, at its planned value; its reply is never made again. A charge whose patients are not known any more, because the
row that brought them was lost too, counts for every account, those that come later included. `write_off` closes one account for good;
when all accounts are closed, the receipts count as answered.
"""

from __future__ import annotations

from dataclasses import dataclass

from client.ledger.book import Ledger
from client.ledger.fold import LedgerFold
from client.ledger.heads import SEAL_PURPOSE
from client.ledger.rows import ChargeEntry, RecoveryEntry, WriteOffEntry
from client.ledger.summary import missing
from common.crypto.sealing import unseal
from common.crypto.secrets import Secret
from common.errors import InputError


@dataclass(frozen=True)
class Recovered:
    """What a recovery did. `patients_lost`: some charges count for every account, because it is not known whose they are."""

    receipts: int
    charges: int
    patients_lost: bool


def recover(ledger: Ledger, secret: Secret) -> Recovered:
    """Charge again what the receipts show and the ledger lacks, newest receipt first. Does nothing when nothing is missing.

    Each receipt is one step that happens wholly or not at all; after an interruption the same call goes on.
    """
    receipts, charges, patients_lost = 0, 0, False
    while True:
        with ledger.writing() as (fold, entries):
            lacking = ledger.lacking(fold)
            if not lacking:
                return Recovered(receipts, charges, patients_lost)
            newest = max(lacking, key=lambda receipt: receipt.row)
            loss = missing(fold, unseal(secret.derive(SEAL_PURPOSE), newest.sealed))
            entries += [*loss.entries, RecoveryEntry((newest.id,))]
        receipts += 1
        charges += sum(isinstance(entry, ChargeEntry) for entry in loss.entries)
        patients_lost |= loss.patients


def write_off(ledger: Ledger, account: str, reason: str) -> str:
    """Close an account, named in full or by the start of its name; returns its name. Raises InputError."""
    if not reason.strip():
        raise InputError("write-off: say in words why this account is closed for good")
    with ledger.writing() as (fold, entries):
        name = _find(fold, account)
        others = [other for other in fold.accounts.names if other != name and not fold.is_written_off(other)]
        answered = () if others else tuple(receipt.id for receipt in ledger.lacking(fold))
        entries.append(WriteOffEntry(name, reason.strip(), answered))
    return name


def _find(fold: LedgerFold, account: str) -> str:
    found = [name for name in fold.accounts.names if account and name.startswith(account)]
    if len(found) != 1:
        raise InputError(f"write-off: {len(found)} accounts start with {account!r}; `wardround-client ledger show` lists them")
    return found[0]
