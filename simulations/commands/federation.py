# SPDX-License-Identifier: Apache-2.0
"""`wardround-sim federation` for a person: progress on stderr, then what came out and where to look."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from common.errors import RunInterrupted
from simulations.federation import Demo, new_folder


def run_demo(out: Path | None, rounds: int) -> dict[str, Any]:
    """Run the demonstration with progress on stderr. Raises RunInterrupted after Ctrl-C or a polite kill, when everything is stopped."""
    folder = new_folder(out)
    try:
        with _kill_is_interrupt():
            return Demo(folder, rounds, lambda line: print(line, file=sys.stderr, flush=True)).run()
    except KeyboardInterrupt as error:
        raise RunInterrupted(f"interrupted; every process is stopped, the folders stay in {folder}") from error


@contextmanager
def _kill_is_interrupt() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def print_demo(facts: dict[str, Any], console: Console) -> None:
    """Where to look, as commands to copy."""
    folder = Path(facts["folder"])
    console.print(f"{facts['study']} was trained at {len(facts['sites'])} hospitals; every process is stopped.", soft_wrap=True)
    console.print("Where to look:")
    for command, what in _places(folder, next(iter(facts["sites"]))):
        console.print(f"  {command}", style="bold", soft_wrap=True)
        console.print(f"      {what}", soft_wrap=True)


def _places(folder: Path, site: str) -> list[tuple[str, str]]:
    coordinator, home = folder / "coordinator", folder / "hospitals" / site
    return [
        (f"wardround-server runs --home {coordinator}", "each run: rounds, replies, the measured AUROC"),
        (f"wardround-client egress --verify --home {home}", f"what left {site}, line by line, against the coordinator's receipts"),
        (f"wardround-client budget --home {home}", "what the patients have spent, and what is promised"),
        (f"wardround-client ledger show {home}", "the ledger behind it"),
        (f"less {home / 'site.yaml'}", "the hospital's own rules"),
        (f"ls {coordinator / 'runs'} {coordinator / 'logs'}", "checkpoints, run store and logs"),
    ]
