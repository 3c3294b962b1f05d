# SPDX-License-Identifier: Apache-2.0
"""What hospital IT does after a restore: charge again what the ledger lost, or close an account for good.

A restored ledger is behind its receipts, the log of what left, or the mark of the restore, and nothing trains. `recover` writes one row
for each charge that is missing, at its planned value; its reply is never made again. The summaries in the receipts come first, because
they say exactly what is missing; then each update in the log of what left has to have a charge (`client.ledger.departures`). A charge whose
patients are not known any more counts for every account, those that come later included. `write_off` closes one account for good; when all
accounts are closed, everything that showed rows counts as answered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from client.ledger.book import LEDGER_BEHIND, Ledger
from client.ledger.departures import Departure, Exits, uncharged
from client.ledger.fold import LedgerFold
from client.ledger.heads import SEAL_PURPOSE
from client.ledger.rows import ChargeEntry, ReceiptId, RecoveryEntry, WriteOffEntry
from client.ledger.summary import missing
from common.crypto.sealing import unseal
from common.crypto.secrets import Secret
from common.errors import InputError, RefusedError
from common.privacy.charge_book import Slot


@dataclass(frozen=True)
class Recovered:
    """What a recovery did. `patients_lost`: some charges count for every account, because it is not known whose they are.

    `charges` of `receipts`, and `left`: charges that only the log of what left shows.
    """

    receipts: int
    charges: int
    patients_lost: bool
    left: int = 0


def recover(ledger: Ledger, secret: Secret, exits: Exits | None = None) -> Recovered:
    """Charge again what the receipts, and what left, show and the ledger lacks. Does nothing when nothing is missing.

    Each receipt is one step that happens wholly or not at all, and so is all that left; after an interruption the same call goes on.
    Without `exits` only receipts are answered. Raises RefusedError LEDGER_BEHIND when something left of which nobody knows the cost.
    """
    receipts, charges, patients_lost = 0, 0, False
    while True:
        with ledger.writing() as (fold, entries):
            lacking = ledger.lacking(fold)
            if not lacking:
                break
            newest = max(lacking, key=lambda receipt: receipt.row)
            loss = missing(fold, unseal(secret.derive(SEAL_PURPOSE), newest.sealed))
            entries += [*loss.entries, RecoveryEntry((newest.id,))]
        receipts += 1
        charges += sum(isinstance(entry, ChargeEntry) for entry in loss.entries)
        patients_lost |= loss.patients
    return Recovered(receipts, charges, patients_lost, 0 if exits is None else _answer_what_left(ledger, exits))


def _answer_what_left(ledger: Ledger, exits: Exits) -> int:
    """Charge what left and is not charged, in one step; how many charges that took."""
    with ledger.writing() as (fold, entries):
        shown = fold.lacks(one.id for one in ledger.sightings())
        departures = exits.departures()
        charges, unknown = uncharged(fold, exits, departures)
        if unknown:
            raise _unknown_cost(unknown)
        if shown or charges:
            entries += [*charges, RecoveryEntry(_heads(fold, shown, departures))]
    return len(charges)


def _heads(fold: LedgerFold, shown: Iterable[ReceiptId], departures: Iterable[Departure]) -> tuple[ReceiptId, ...]:
    """Every head that is answered now: a receipt for one of them that comes later shows nothing new."""
    rode = (one.head for one in departures if one.head is not None)
    return tuple(dict.fromkeys([*shown, *fold.lacks(dict.fromkeys(rode))]))


def _unknown_cost(unknown: list[Slot]) -> RefusedError:
    study_id, run_id, number, line = unknown[0]
    return RefusedError(
        LEDGER_BEHIND,
        f"{len(unknown)} replies left that are not charged, and what they cost is not known here: the first is round {number} of run "
        f"{run_id[:12]} of study {study_id[:12]} ({line} line), whose offer is not in studies/. Run `wardround-client ledger recover` "
        "again when the coordinator answers, or close the accounts with `wardround-client ledger write-off`",
    )


def write_off(ledger: Ledger, account: str, reason: str) -> str:
    """Close an account, named in full or by the start of its name; returns its name. Raises InputError."""
    if not reason.strip():
        raise InputError("write-off: say in words why this account is closed for good")
    with ledger.writing() as (fold, entries):
        name = _find(fold, account)
        others = [other for other in fold.accounts.names if other != name and not fold.is_written_off(other)]
        answered = () if others else tuple(fold.lacks(dict.fromkeys(one.id for one in ledger.sightings())))
        entries.append(WriteOffEntry(name, reason.strip(), answered))
    return name


def _find(fold: LedgerFold, account: str) -> str:
    found = [name for name in fold.accounts.names if account and name.startswith(account)]
    if len(found) != 1:
        raise InputError(f"write-off: {len(found)} accounts start with {account!r}; `wardround-client ledger show` lists them")
    return found[0]
