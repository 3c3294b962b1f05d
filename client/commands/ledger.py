# SPDX-License-Identifier: Apache-2.0
"""The ledger for hospital IT: what was spent, whether the record is whole, and what to do after a restore.

Each function returns plain facts; `print_…` shows them. Nothing here leaves the site.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from client.figures import Figures
from client.ledger.fold import LedgerFold
from client.ledger.recovery import write_off
from client.site import figures_path, home_of, ledger_settings, open_ledger, receipts_path
from common.privacy.charge_book import Line, State

NOT_PROTECTED = "not protected"


def show(folder: Path) -> dict[str, Any]:
    """Accounts with what each line has spent, and what studies were promised besides.

    `epsilon`, `epsilon_promised` (both together) and `left` are None where something left without protection.
    """
    (name, cap), ledger = ledger_settings(folder), open_ledger(folder)
    fold = ledger.fold()
    figures = Figures(figures_path(home_of(folder)))
    accounts = [_account(fold, account, line, cap, figures) for account in fold.accounts.names for line in Line]
    return {"site": name, "rows": fold.number, "behind": bool(ledger.unanswered()), "accounts": accounts}


def verify(folder: Path) -> dict[str, Any]:
    """Check every row, its hash, its MAC, the triggers, the patients and the receipts.

    Raises StorageError for damage, RefusedError LEDGER_BEHIND when a receipt or the log of what left shows rows that are not there.
    """
    ledger = open_ledger(folder)
    ledger.check_storage()
    fold = ledger.fold()
    ledger.check_not_behind()
    path = receipts_path(home_of(folder))
    lines = path.read_bytes().count(b"\n") if path.exists() else 0
    believed = len(ledger.receipts())
    return {"rows": fold.number, "head": fold.head, "receipts": believed, "receipts_ignored": lines - believed}


def recover_site(folder: Path) -> dict[str, Any]:
    """Charge again what a restored ledger lacks, after asking the coordinator. Raises as `client.recovering.recover_site`."""
    from client.recovering import recover_site as run

    outcome = run(folder)
    return {**asdict(outcome.recovered), "asked": outcome.asked, "not_asked": outcome.not_asked, "was_restored": outcome.was_restored}


def recovery_text(facts: dict[str, Any]) -> str:
    """What a recovery did, in words."""
    parts = []
    if facts["receipts"]:
        parts.append(f"{facts['charges']} charges were missing and are charged again ({facts['receipts']} receipts)")
    if facts["patients_lost"]:
        parts.append("rows that brought patients are lost, so some of these charges count for every account")
    if facts["left"]:
        parts.append(f"{facts['left']} charges are made for what left without a receipt; they count for every account")
    if facts["not_asked"]:
        parts.append(f"the coordinator was not asked ({facts['not_asked']}): what only it knows may still show")
    if facts["was_restored"]:
        parts.append("this restored site may train again")
    return "; ".join(parts) or "nothing is missing"


def write_off_account(folder: Path, account: str, reason: str) -> dict[str, Any]:
    """Close an account for good. Raises InputError."""
    ledger = open_ledger(folder)
    name = write_off(ledger, account, reason)
    return {"account": name, "reason": reason, "behind": bool(ledger.unanswered())}


def export_rows(folder: Path) -> Iterator[dict[str, Any]]:
    """Every row as it is stored, checked; patients' pseudonyms are left out."""
    ledger = open_ledger(folder)
    ledger.fold()
    for row in ledger.rows():
        yield {**asdict(row), "content": json.loads(row.content)}


def print_accounts(facts: dict[str, Any], console: Console) -> None:
    """The accounts as a table."""
    table = Table(title=f"{facts['site']}: {facts['rows']} rows", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    third = "promised" if any(account["promised"] for account in facts["accounts"]) else "charges"
    for column in ("account", "line", "patients", third, "ε spent", "cap", "left", "δ", ""):
        table.add_column(column, no_wrap=True)
    for account in facts["accounts"]:
        cap = account["cap"]
        table.add_row(
            account["account"][:8],
            account["line"],
            str(account["patients"]),
            _figure(account["epsilon_promised"], "") if third == "promised" else str(account["charges"]),
            _figure(account["epsilon"], NOT_PROTECTED),
            _figure(cap, "study's"),
            _figure(account["left"], "" if cap is None else "0"),
            f"{account['delta']:g}",
            "written off" if account["written_off"] else "",
        )
    console.print(table)
    if third == "promised":
        console.print("promised: ε when all that studies were promised is spent too; left is what no study was promised.")
    if facts["behind"]:
        console.print("This ledger is behind what is known of it: nothing trains until `wardround-client ledger recover` has run.")


def _account(fold: LedgerFold, name: str, line: Line, cap: float | None, figures: Figures) -> dict[str, Any]:
    charges = [charge for charge in fold.history(name, line) if charge.state is not State.SETTLED]
    promises = fold.promises(name, line)
    delta = fold.accounts.delta(name)
    spent = [charge.event_json for charge in charges]
    epsilon = figures.epsilon(spent, delta)
    protected = math.isfinite(epsilon)
    whole = figures.epsilon([*spent, *(one.event_json for one in promises)], delta) if protected and promises else epsilon
    return {
        "account": name,
        "line": line.value,
        "patients": fold.accounts.patient_count(name, line),
        "charges": len(charges),
        "epsilon": epsilon if protected else None,
        "promised": [{"study": one.earmark.study_id, "count": one.count, "of": one.earmark.count} for one in promises],
        "epsilon_promised": whole if protected else None,
        "cap": cap,
        "left": max(cap - whole, 0.0) if protected and cap is not None else None,
        "delta": delta,
        "protected": protected,
        "written_off": fold.is_written_off(name),
    }


def _figure(value: float | None, otherwise: str) -> str:
    return otherwise if value is None else f"{value:.3f}"
