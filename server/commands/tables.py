# SPDX-License-Identifier: Apache-2.0
"""The coordinator's tables on the terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

ANSWERS = {"approved:": "approved", "not yet:": "silent", "rejected:": "rejected"}


def print_status(facts: dict[str, Any], clear: bool) -> None:
    """What `server.following.standing` found."""
    console = Console(highlight=False)
    if clear:
        console.clear()
    up = facts["up"]
    if up is None:
        console.print(f"{facts['url']}: not running; start it with `wardround-server up`", soft_wrap=True)
    else:
        children = ", ".join(f"{name} {_child(child)}" for name, child in up["children"].items())
        console.print(f"{facts['url']}: {up['state']} since {_date(up['started'])} ({children})", soft_wrap=True)
    table = Table("site", "status", "connected")
    for site in facts["sites"]:
        table.add_row(site["name"], site["status"], {True: "yes", False: "no", None: "?"}[site["connected"]])
    console.print(table if facts["sites"] else "no sites yet; `wardround-server invite NAME`")
    print_runs(facts["runs"], console)


def print_runs(runs: Sequence[dict[str, Any]], console: Console | None = None) -> None:
    """Runs as `server.following.RunFacts.as_json`."""
    console = console or Console(highlight=False)
    if not runs:
        console.print("no runs yet; `wardround-server start STUDY.yaml --sites A,B,C`", soft_wrap=True)
        return
    table = Table()
    for name in ("run", "study", "status", "rounds"):
        table.add_column(name, no_wrap=True)
    table.add_column("sites", overflow="fold")
    for run in runs:
        said = [f"{label} {', '.join(run[key])}" for label, key in ANSWERS.items() if run[key]]
        said += [f"suspended: {', '.join(run['suspended'])}"] if run["suspended"] else []
        table.add_row(run["run_id"][:8], run["study"], run["status"], f"{run['rounds_done']}/{run['rounds']}", "; ".join(said))
    console.print(table)
    for run in runs:
        if run["details"]:
            console.print(f"{run['run_id'][:8]}: {run['details']}", soft_wrap=True, markup=False)
        for site, reasons in run["suspended"].items():
            text = f"{run['run_id'][:8]}: {site} is suspended ({'; '.join(reasons)}); `wardround-server readmit {run['run_id'][:8]} {site}`"
            console.print(text, soft_wrap=True, markup=False)


def _child(child: dict[str, Any]) -> str:
    restarts = f", restarted {child['restarts']} times" if child["restarts"] else ""
    return ("up" if child["pid"] else "DOWN") + restarts


def _date(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds))
