# SPDX-License-Identifier: Apache-2.0
"""`wardround-client`, the command line of hospital IT.

Results go to stdout (`--json`: exactly one object), messages to stderr; errors become the exit codes of `common.errors`. Nothing heavy is
imported before a command needs it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from client.commands import backup, checking, cohort, enrolment, exits, serving, studies
from common.command_line import run_app
from common.errors import EXIT_CODE_HELP

if TYPE_CHECKING:
    from rich.console import Console

NAME = "wardround-client"
_EXIT_CODES = "Exit codes: " + " · ".join(f"{code.value} {text}" for code, text in EXIT_CODE_HELP.items())

app = typer.Typer(
    name=NAME,
    help="A hospital's side of Wardround.",
    epilog=f"Example: {NAME} ledger show /srv/wardround\n\n{_EXIT_CODES}",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
ledger_app = typer.Typer(help="The privacy ledger: what was spent, is it whole, and what to do after a restore.", no_args_is_help=True)
for group in (enrolment, checking, cohort, serving, studies, exits, backup):
    group.register(app)
app.add_typer(ledger_app, name="ledger")

FolderArgument = Annotated[Path, typer.Argument(metavar="SITE_FOLDER", help="The site's folder, with site.json in it.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    return run_app(app, NAME, arguments)


@ledger_app.command(epilog=f"Example: {NAME} ledger show /srv/wardround")
def show(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Each account: ε spent, its cap, and what is left."""
    from client.commands import ledger

    facts = ledger.show(folder)
    if as_json:
        _print_json(facts)
    else:
        ledger.print_accounts(facts, _console())


@ledger_app.command(epilog=f"Example: {NAME} ledger verify /srv/wardround")
def verify(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Check the chain, every row's MAC, the triggers and the receipts. Exit code 6 for damage, 3 when rows are missing."""
    from client.commands import ledger

    facts = ledger.verify(folder)
    ignored = f", {facts['receipts_ignored']} ignored" if facts["receipts_ignored"] else ""
    _answer(facts, as_json, f"{facts['rows']} rows are whole; {facts['receipts']} receipts fit{ignored}; head {facts['head'][:16]}…")


@ledger_app.command(epilog=f"Example: {NAME} ledger recover /srv/wardround")
def recover(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """After a restore: charge again, at its planned value, each round that left and the ledger lacks. Asks the coordinator first."""
    from client.commands import ledger

    facts = ledger.recover_site(folder)
    _answer(facts, as_json, ledger.recovery_text(facts))


@ledger_app.command("write-off", epilog=f'Example: {NAME} ledger write-off /srv/wardround 3fa9c1 --reason "cohort withdrawn"')
def write_off(
    folder: FolderArgument,
    account: Annotated[str, typer.Argument(metavar="ACCOUNT", help="The account, or the start of its name.")],
    reason: Annotated[str, typer.Option(help="Why, in words; it stays in the ledger.")],
    as_json: JsonOption = False,
) -> None:
    """Close an account for good: its patients never train again. There is no way back."""
    from client.commands import ledger

    facts = ledger.write_off_account(folder, account, reason)
    still = "; the ledger is still behind its receipts: recover, or write off the other accounts too" if facts["behind"] else ""
    _answer(facts, as_json, f"account {facts['account']} is closed for good{still}")


@ledger_app.command(epilog=f"Example: {NAME} ledger export /srv/wardround > ledger.jsonl")
def export(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Every row, one JSON line each (`--json`: one object with all rows), for an auditor. Patients' pseudonyms are left out."""
    from client.commands import ledger

    rows = ledger.export_rows(folder)
    if as_json:
        _print_json({"rows": list(rows)})
    else:
        for row in rows:
            _print_json(row)


def _answer(facts: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        _print_json(facts)
    else:
        _console().print(text, soft_wrap=True)


def _print_json(facts: dict[str, Any]) -> None:
    print(json.dumps(facts, ensure_ascii=False))


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


if __name__ == "__main__":
    sys.exit(main())
