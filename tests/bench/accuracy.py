# SPDX-License-Identifier: Apache-2.0
"""`make bench-accuracy`: the accuracy of the shipped studies on public chest radiographs, written into docs/results.md.

Every figure is a run as `wardround-sim run` makes it. Results are kept in `runs/bench-accuracy`; a finished one is not computed again,
an interrupted one is resumed. A call that is cut down with --rows or --seeds writes its page beside the results, not into docs/.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from common.errors import RunInterrupted, WardroundError
from common.events import Event
from common.files import write_atomic
from simulations.options import RunOptions
from simulations.results import RunResult
from tests.bench.accuracy_page import page
from tests.bench.accuracy_rows import ROWS, SEEDS, SITES, Job, jobs_of, rows_named
from tests.bench.accuracy_table import Summary, finding_of
from tests.bench.accuracy_tuning import TUNING

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data"
OUT = ROOT / "runs" / "bench-accuracy"
PAGE = ROOT / "docs" / "results.md"


def main(arguments: Sequence[str]) -> int:
    """Run what is missing, write the page, and return 1 if a run failed or a figure falls short."""
    options = _parser().parse_args(arguments)
    rows, seeds = rows_named(options.rows), tuple(options.seeds or SEEDS)
    console = Console(stderr=True)
    jobs = [job for job in jobs_of(rows, seeds) if not job.is_done(options.out)]
    failed = [] if options.table_only else _run_all(jobs, options, console)
    whole = not options.rows and seeds == SEEDS
    summaries = read_summaries(options.out)
    missing = [job for job in jobs_of(ROWS, SEEDS) if not job.is_done(options.out)]
    write_atomic(PAGE if whole else options.out / "results.md", page(summaries, missing, len(SEEDS), TUNING))
    shortfalls = [f"{summary.row.name}: {text}" for summary in summaries if summary.row in rows for text in summary.shortfalls]
    for text in (*failed, *shortfalls):
        console.print(text, style="red", markup=False)
    return 1 if failed or shortfalls else 0


def read_summaries(out: Path) -> list[Summary]:
    """Every row that has results of its current settings, with them. Raises ValueError when a result cannot be read."""
    summaries = []
    for row in ROWS:
        done = [Job(row, seed) for seed in SEEDS if Job(row, seed).is_done(out)]
        if done:
            summaries.append(Summary(row, tuple(finding_of(RunResult.read(out / job.folder / "results.json")) for job in done)))
    return summaries


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench-accuracy", description=__doc__)
    parser.add_argument("--rows", type=_words, default=_words(os.environ.get("BENCH_ROWS", "")), help="names of rows, default all")
    seeds = _numbers(os.environ.get("BENCH_SEEDS", ""))
    parser.add_argument("--seeds", type=_numbers, default=seeds, help="such as 0,1; default 0 to 4")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the public data sets")
    parser.add_argument("--out", type=Path, default=OUT, help="where results are kept")
    parser.add_argument("--workers", type=int, default=1, help="training processes side by side")
    parser.add_argument("--table-only", action="store_true", help="run nothing, write the page from what is there")
    return parser


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _numbers(text: str) -> list[int]:
    return [int(word) for word in _words(text)]


def _run_all(jobs: Sequence[Job], options: argparse.Namespace, console: Console) -> list[str]:
    """Run each job; returns what went wrong, one line each. An interruption ends the whole call."""
    failed = []
    with Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console) as progress:
        whole, part = progress.add_task("runs", total=len(jobs)), progress.add_task("", total=None)
        for job in jobs:
            try:
                _run(job, options, _Follower(progress, part, f"{job.row.name} seed {job.seed}"))
            except RunInterrupted:
                raise
            except WardroundError as error:
                failed.append(f"{job.row.name} seed {job.seed}: {error}")
            progress.advance(whole)
            console.print(f"{job.row.name} seed {job.seed}: {_auroc(job, options.out)}", markup=False)
    return failed


def _auroc(job: Job, out: Path) -> str:
    return f"AUROC {finding_of(RunResult.read(out / job.folder / 'results.json')).auroc:.4f}" if job.is_done(out) else "failed"


def _run(job: Job, options: argparse.Namespace, follower: _Follower) -> None:
    """One run, from the start or from where it stopped."""
    from simulations.run import resume_study, run_study

    folder = options.out / job.folder
    if (folder / "request.json").exists():
        resume_study(folder, (follower,))
        return
    study = RunOptions(
        study=job.row.study_of(job.seed),
        out=folder,
        data=options.data / job.row.data,
        sites=SITES,
        partition=job.row.partition,
        workers=options.workers,
        threads=1,
        baselines=job.baselines,
        command=f"make bench-accuracy, row {job.row.name}",
    )
    run_study(study, (follower,))


class _Follower:
    """Shows the phase that a run is in."""

    def __init__(self, progress: Progress, task: TaskID, name: str) -> None:
        self._progress, self._task, self._name = progress, task, name

    def __call__(self, event: Event) -> None:
        if event.name == "phase_started":
            total = event.facts.get("total")
            self._progress.reset(self._task, total=int(str(total)) if total else None, description=f"{self._name}: {event.facts['label']}")
        elif event.name == "progress":
            self._progress.update(self._task, completed=int(str(event.facts["done"])))
        elif event.name == "round_done":
            self._progress.update(self._task, completed=int(str(event.facts["round"])))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
