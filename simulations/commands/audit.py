# SPDX-License-Identifier: Apache-2.0
"""`audit` for the command line: runs the audit with progress bars, writes its page, prints the bounds."""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from common.errors import InputError, StorageError
from common.files import write_atomic
from common.study import Study
from simulations.audit.results import AuditResult
from simulations.audit.run import AuditOptions, Report, audit_study

AUDITS_FOLDER = Path("audits")
VERDICTS = {
    "passed": "passed: the control was caught, and the claim could not be refuted",
    "failed": "FAILED: the claim is wrong",
    "inconclusive": "INCONCLUSIVE: the control was not caught, so the attack proves nothing",
}


def new_audit_folder(study: Study, out: Path | None) -> Path:
    """`out`, or a fresh name under `audits/`. Raises InputError if something is there already, StorageError if it cannot be made."""
    folder = out or AUDITS_FOLDER / f"{study.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise InputError(f"--out {folder}: is there already; name a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{folder}: cannot be made ({error.strerror}); choose another --out") from error
    return folder


def run_audit(options: AuditOptions, out: Path | None) -> tuple[AuditResult, dict[str, Any]]:
    """Audit, write `audit.html`, `audit.json` and `study.json`; the result and its facts. The verdict is the caller's to act on."""
    from simulations.audit.page import write_audit

    with _progress() as report:
        result = audit_study(options, report)
    folder = new_audit_folder(options.study, out)
    page = write_audit(result, folder / "audit.html")
    facts = {**result.facts(), "report": str(page)}
    write_atomic(folder / "audit.json", json.dumps(facts, indent=1))
    write_atomic(folder / "study.json", result.study.model_dump_json(indent=1))
    return result, facts


def print_audit(facts: dict[str, Any], console: Console) -> None:
    """The bounds as a table, the verdict, and where the page is."""
    claim, tested = facts["claim"], facts["tested"]
    table = Table(title=f"{facts['name']}: ε claimed {claim['epsilon']:g} at δ={claim['delta']:g}", title_justify="left")
    table.add_column("run")
    for heading in ("guesses right", "ε ≥ at 95 %", "ε ≥ at 99.9 %", f"claim at δ={tested['delta']:g}"):
        table.add_column(heading, justify="right")
    for name, key in (("private", "private"), ("control, no noise", "control")):
        bound = facts[key]["bound"]
        cells = (f"{bound['right']} of {bound['guesses']}", f"{bound['epsilon_95']:.2f}", f"{bound['epsilon_999']:.2f}")
        table.add_row(name, *cells, f"{tested['epsilon']:.2f}")
    table.add_row("a perfect attack", f"{tested['guesses']} of {tested['guesses']}", "", f"{tested['possible_epsilon']:.2f}", "")
    console.print(table)
    console.print(Text(VERDICTS[facts["verdict"]]), soft_wrap=True)
    console.print(Text(f"report: {facts['report']}"), soft_wrap=True)


@contextmanager
def _progress() -> Iterator[Report]:
    """One bar for each part, on stderr; several parts report from threads of their own."""
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}"), TimeElapsedColumn())
    bars: dict[str, TaskID] = {}
    lock = threading.Lock()
    with Progress(*columns, console=Console(stderr=True)) as progress:

        def report(label: str, done: int, total: int) -> None:
            with lock:
                if label not in bars:
                    bars[label] = progress.add_task(label, total=total)
                progress.update(bars[label], completed=done)

        yield report
