# SPDX-License-Identifier: Apache-2.0
"""Commands of hospital IT: what left the building, and whether the record of it is whole."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from client.egress_audit import Findings
    from client.egress_chain import EgressLine

HomeOption = Annotated[Path | None, typer.Option("--home", metavar="DIR", help="The site's folder; default WARDROUND_SITE, else here.")]
MIB = 1 << 20


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: wardround-client egress --verify")(egress)


def egress(
    home: HomeOption = None,
    verify: Annotated[bool, typer.Option("--verify", help="Say what was checked, what was seen, and what could not be seen.")] = False,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="WHY", help="Why acknowledged lines are not here (a restore).")
    ] = None,
    last: Annotated[int, typer.Option("--last", min=1, metavar="N", help="Show the last N lines.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, with all lines.")] = False,
) -> None:
    """What left: one line for each message with content. Exit code 6 when the record is damaged or lines are missing."""
    from rich.console import Console

    from client.egress_audit import audit
    from client.egress_audit import explain as write_note
    from client.site_home import SiteHome
    from common.errors import StorageError

    site = SiteHome.find(home)
    if explain is not None:
        write_note(site, explain, time.time())
    found = audit(site)
    if as_json:
        print(json.dumps(_facts(found), ensure_ascii=False))
    else:
        _show(found, last, verify, Console(highlight=False))
    if found.problems:
        raise StorageError("\n".join(found.problems))


def _facts(found: Findings) -> dict[str, Any]:
    from client.egress_audit import sentences

    number, head = found.head
    lines = [
        {**line.model_dump(mode="json"), "acknowledged": line.number in found.acknowledged, "again": found.again.get(line.number)}
        for line in found.lines
    ]
    return {
        "checked": found.checked,
        "whole": not found.problems,
        "problems": found.problems,
        "number": number,
        "head": head,
        "covered": found.covered,
        "receipts": found.receipts,
        "receipts_ignored": found.receipts_ignored,
        "missing": len(found.missing),
        "explained": found.explained,
        "torn_bytes": found.torn_bytes,
        "said": sentences(found),
        "lines": lines,
    }


def _show(found: Findings, last: int, verify: bool, console: Console) -> None:
    from client.egress_audit import sentences

    _print_lines(found, found.lines[-last:], console)
    if verify:
        console.print(f"Checked: {found.checked}.", soft_wrap=True)
        for text in sentences(found):
            console.print(text, markup=False, soft_wrap=True)
    elif not found.problems:
        number, head = found.head
        console.print(f"{number} lines, head {head[:16]}…; checked: {found.checked} (--verify says what that shows)", soft_wrap=True)


def _print_lines(found: Findings, lines: list[EgressLine], console: Console) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("line", "time", "study", "run", "round", "what", "values", "MiB", "ε after", "coordinator", ""):
        table.add_column(column, no_wrap=bool(column))
    for line in lines:
        table.add_row(
            str(line.number),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(line.time)),
            *(("", "", "") if line.kind == "note" else (line.study_id[:8], line.run_id[:8], str(line.round))),
            f"refusal {line.code}" if line.kind == "refusal" else line.kind,
            str(len(line.fields)),
            f"{line.size_bytes / MIB:.3f}",
            _epsilon(line),
            "has it" if line.number in found.acknowledged else "",
            escape(_remarks(found, line)),
        )
    console.print(table)


def _epsilon(line: EgressLine) -> str:
    return "" if line.epsilon is None else line.epsilon if isinstance(line.epsilon, str) else f"{line.epsilon:.3f}"


def _remarks(found: Findings, line: EgressLine) -> str:
    remarks = [f"again ({found.again[line.number]})"] if line.number in found.again else []
    remarks += [f"{line.torn_bytes} torn bytes cut off before"] if line.torn_bytes else []
    remarks += [f"explains {len(line.explained)} lines: {line.note}"] if line.kind == "note" else []
    return "; ".join(remarks)
