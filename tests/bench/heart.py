# SPDX-License-Identifier: Apache-2.0
"""`make bench-heart`: accuracy of the shipped heart disease studies beside FLamby's published figures, written into docs/heart.md.

Every figure is a run as `wardround-sim run` makes it. Results are kept in `runs/bench-heart`; a finished one is not computed again, an
interrupted one is resumed. A call that is cut down with --levels or --runs writes its page beside the results, not into docs/.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from common.errors import RunInterrupted, WardroundError
from common.files import write_atomic
from simulations.options import RunOptions
from simulations.results import RunResult
from tests.bench.heart_data import write_split
from tests.bench.heart_page import page, shortfalls
from tests.bench.heart_rows import RUNS, Finding, Job, finding_of, jobs

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data" / "heart_disease"
OUT = ROOT / "runs" / "bench-heart"
PAGE = ROOT / "docs" / "heart.md"


def main(arguments: Sequence[str]) -> int:
    """Run what is missing, write the page, and return 1 if a run failed or a figure falls short."""
    options = _parser().parse_args(arguments)
    console = Console(stderr=True)
    failed = [] if options.table_only else _run_all(list(jobs(options.levels, options.runs)), options, console)
    findings = read_findings(options.out, options.runs)
    whole = not options.levels and options.runs == RUNS
    write_atomic(PAGE if whole else options.out / "heart.md", page(findings, options.runs))
    short = shortfalls(findings)
    for text in (*failed, *short):
        console.print(text, style="red", markup=False)
    return 1 if failed or short else 0


def read_findings(out: Path, runs: int) -> dict[Job, Finding]:
    """Every finished run of the current settings."""
    return {job: finding_of(RunResult.read(out / job.folder / "results.json")) for job in jobs((), runs) if job.is_done(out)}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench-heart", description=__doc__)
    parser.add_argument("--levels", type=lambda text: text.split(","), default=[], help="such as e1,none; default all")
    parser.add_argument("--runs", type=int, default=RUNS, help="seeds on FLamby's split, and random splits")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the four files")
    parser.add_argument("--out", type=Path, default=OUT, help="where results are kept")
    parser.add_argument("--table-only", action="store_true", help="run nothing, write the page from what is there")
    return parser


def _run_all(waiting: Sequence[Job], options: argparse.Namespace, console: Console) -> list[str]:
    """Run each job that is not done; returns what went wrong, one line each. An interruption ends the whole call."""
    failed = []
    for number, job in enumerate(waiting, 1):
        if job.is_done(options.out):
            continue
        name = f"{job.level.name} {job.protocol} {job.number}"
        try:
            _run(job, options)
            found = f"accuracy {finding_of(RunResult.read(options.out / job.folder / 'results.json')).mean:.4f}"
        except RunInterrupted:
            raise
        except WardroundError as error:
            failed.append(f"{name}: {error}")
            found = "failed"
        console.print(f"{number}/{len(waiting)} {name}: {found}", markup=False)
    return failed


def _run(job: Job, options: argparse.Namespace) -> None:
    """One run, from the start or from where it stopped."""
    from simulations.run import resume_study, run_study

    folder = options.out / job.folder
    if (folder / "request.json").exists():
        resume_study(folder, ())
        return
    run_study(
        RunOptions(
            study=job.study,
            out=folder,
            data=write_split(options.data, options.out / "data" / f"split-{job.split_seed}", job.split_seed),
            threads=1,
            baselines=job.baselines,
            command=f"make bench-heart, {job.level.name} {job.protocol} {job.number}",
        ),
        (),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
