# SPDX-License-Identifier: Apache-2.0
"""`make soak`: 200 short rounds in one real federation while its processes are killed; then the books are compared.

    python -m tests.bench.soak [--rounds 200] [--runs 5] [--kills 40] [--seed 1] [--minutes 30] [--folder DIR]

Exit code 0 when everything holds. The same seed gives the same schedule of kills.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from tests.bench.soak.driving import Options, soaking
from tests.bench.soak.report import Report, report


def main(arguments: Sequence[str]) -> int:
    """Soak, print the report; 0 when everything holds, else 1."""
    options, folder = _options(arguments)
    console = Console(width=150)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill stops the processes too
    if folder is not None:
        return _show(soak(folder, options, console), console)
    with tempfile.TemporaryDirectory() as temporary:
        return _show(soak(Path(temporary), options, console), console)


def soak(folder: Path, options: Options, console: Console) -> Report:
    """The whole thing in `folder`; the report after everything was stopped."""
    with soaking(folder, options, lambda text: console.log(text, markup=False)) as driver:
        found = report(driver)
    found.problems += [problem for problem in driver.problems if problem not in found.problems]
    return found


def _show(found: Report, console: Console) -> int:
    found.show(console)
    return 0 if found.holds else 1


def _options(arguments: Sequence[str]) -> tuple[Options, Path | None]:
    parser = argparse.ArgumentParser(prog="soak", description="Soak a real federation while its processes are killed.")
    parser.add_argument("--rounds", type=int, default=Options.rounds)
    parser.add_argument("--runs", type=int, default=Options.runs)
    parser.add_argument("--kills", type=int, default=Options.kills)
    parser.add_argument("--seed", type=int, default=Options.seed)
    parser.add_argument("--minutes", type=float, default=Options.minutes, help="stop after so long, finished or not")
    parser.add_argument("--folder", type=Path, help="keep the federation's folders here (must be new or empty)")
    given = parser.parse_args(arguments)
    return Options(given.rounds, given.runs, given.kills, given.seed, given.minutes), given.folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
