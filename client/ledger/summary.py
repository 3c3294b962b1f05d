# SPDX-License-Identifier: Apache-2.0
"""Everything that a ledger has charged, in one text; and what a restored ledger lacks of it.

The text is sealed into each head. It has, for each account, study, run, line and mechanism, the rounds that are charged, each with the
tag of the row that reserved it; which accounts are part of which; and the tags of the rows that brought patients. Pseudonyms are not
in it. So after a restore it is known exactly which charges are missing, and that patients are missing but not who they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from client.ledger.fold import UNKNOWN_MESSAGE, LedgerFold
from client.ledger.rows import ChargeEntry, Entry, MergeEntry
from common.errors import StorageError
from common.privacy.charge_book import Charge, ChargeKey, Line, State


class Mechanism(NamedTuple):
    """What some rounds have in common."""

    account: str
    study_id: str
    run_id: str
    line: Line
    event_json: str
    steps: int


class Summary(BaseModel):
    """`charges` has (round, tag, whether its reply may have left) for each mechanism; `accounts` says what each account is part of;
    `patients` has the tags of the rows that brought patients, for each account."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    charges: tuple[tuple[Mechanism, tuple[tuple[int, str, bool], ...]], ...]
    accounts: dict[str, str]
    patients: dict[str, tuple[str, ...]]


@dataclass(frozen=True)
class Loss:
    """What a restored ledger lacks. `patients`: rows that brought patients were lost, so it is not known who paid."""

    entries: tuple[Entry, ...]
    patients: bool


def summarise(fold: LedgerFold) -> str:
    """The text. Charges that were settled to zero are left out."""
    groups: dict[Mechanism, list[tuple[int, str, bool]]] = {}
    for charge in fold.charge_fold.charges:
        if charge.state is not State.SETTLED:
            key = charge.key
            account = fold.accounts.root(key.account)
            mechanism = Mechanism(account, key.study_id, key.run_id, key.line, charge.event_json, charge.steps)
            groups.setdefault(mechanism, []).append((key.round, fold.tag(charge), charge.state is not State.RESERVED))
    charges = tuple((mechanism, tuple(rounds)) for mechanism, rounds in groups.items())
    patients = {account: tuple(tags) for account, tags in fold.registrations.items()}
    return Summary(charges=charges, accounts=fold.accounts.roots, patients=patients).model_dump_json()


def missing(fold: LedgerFold, text: str) -> Loss:
    """What `text` knows and the ledger lacks. Raises StorageError when `text` is not a summary."""
    try:
        summary = Summary.model_validate_json(text)
    except ValidationError as error:
        raise StorageError(f"the summary in a receipt cannot be read ({error.error_count()} problems)") from error
    strangers = _accounts_with_lost_patients(fold, summary)
    charges = map(ChargeEntry, _lost_charges(fold, summary, strangers))
    return Loss((*_lost_merges(fold, summary), *charges), bool(strangers))


def _accounts_with_lost_patients(fold: LedgerFold, summary: Summary) -> set[str]:
    """Accounts of the summary to which patients came in rows that are not here."""
    known = {tag for tags in fold.registrations.values() for tag in tags}
    return {summary.accounts[account] for account, tags in summary.patients.items() if not known.issuperset(tags)}


def _lost_merges(fold: LedgerFold, summary: Summary) -> Iterator[MergeEntry]:
    """Accounts that are here, were one, and are not one any more."""
    into: dict[str, str] = {}
    together: dict[str, str] = {}
    for account, root in summary.accounts.items():
        if not fold.accounts.is_known(account):
            continue
        here, first = (_follow(into, fold.accounts.root(name)) for name in (account, together.setdefault(root, account)))
        if here != first:
            into[here] = first
            yield MergeEntry(here, first)


def _follow(into: dict[str, str], account: str) -> str:
    while account in into:
        account = into[account]
    return account


def _lost_charges(fold: LedgerFold, summary: Summary, strangers: set[str]) -> Iterator[Charge]:
    """Each lost charge with its planned mechanism. Where patients are lost, it is nobody's, and so counts for everybody."""
    local = {(charge.key.slot, fold.tag(charge)): charge for charge in fold.charge_fold.charges}
    for mechanism, rounds in summary.charges:
        owner = f"{mechanism.account} and others" if mechanism.account in strangers else mechanism.account
        for number, tag, may_have_left in rounds:
            key = ChargeKey(owner, mechanism.study_id, mechanism.run_id, number, UNKNOWN_MESSAGE + tag, mechanism.line)
            known = local.get((key.slot, tag))
            if known is None:
                yield Charge(key, State.RECOVERED, mechanism.event_json, mechanism.steps)
            elif known.state is State.SETTLED or (known.state is State.RESERVED and may_have_left):
                yield replace(known, state=State.RECOVERED)
