# SPDX-License-Identifier: Apache-2.0
"""`make bench-simulation`: what the framework costs over a plain PyTorch loop of the same maths, as ratios measured in one run.

Repetitions take turns, and a ratio is the median of the ratios within a turn: a machine that is shared drifts by tens of percent over
minutes, and both sides of a turn see the same drift.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench.measure import Measured, run

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT.parent / "shared" / "data" / "kermany_cxr" / "kermany_cxr_64.npz"
STUDY = ROOT / "simulations" / "studies" / "chest-xray.yaml"
REPETITIONS = int(os.environ.get("BENCH_REPETITIONS", "4"))
FIVE_ROUNDS = {"federation.rounds": 5, "evaluation.every": 0}
LONG = {"federation.rounds": 15, "evaluation.every": 0}
MANY_SITES, FEW_SITES, PATIENTS_OF_A_SITE = 100, 4, 40
MANY_ROUNDS, FEW_ROUNDS, WARM_UP_ROUNDS = 12, 60, 2
SMALL = {
    "evaluation.every": 0,
    "data.source": "phantom",
    "data.label_key": "labels",
    "data.labels": ["normal", "opacity"],
    "data.label_values": None,
    "data.image_size": 32,
    "training.sampling_rate": 0.5,
    "training.local_steps": 2,
}
MOST_GROWTH_MEGABYTES = 2.0
MOST_TIMES_FOUR_SITES = 1.2


@dataclass(frozen=True)
class Figure:
    """One run's figures: `wall_seconds` until the model is trained, `training_seconds` from the first round's start.

    `peak_megabytes` is PSS over the process tree. `driver` is the driver process alone: its unique memory after each round, and the
    most that was resident until the rounds were finished.
    """

    wall_seconds: float
    training_seconds: float
    to_first_step_seconds: float
    peak_megabytes: float
    round_seconds: list[float] = field(default_factory=list)
    driver_megabytes: list[float] = field(default_factory=list)
    driver_peak_megabytes: float = 0.0


class Bench:
    """Runs things in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def ours(self, *, changes: dict[str, Any] = FIVE_ROUNDS, sites: int = 4, workers: int = 1, threads: int = 1, **options: Any) -> Figure:
        """One run of ours without baselines."""
        request = {"study": str(STUDY), "changes": changes, "data": str(DATA), "engine": "local", **options}
        request |= {"sites": sites, "workers": workers, "threads": threads, "out": str(self.new_folder())}
        measured = run([sys.executable, "-m", "tests.bench.one_run", json.dumps(request)])
        times = _last_json(measured)
        return Figure(
            times["last_round_done"] - measured.started_at,
            times["last_round_done"] - times["first_round_started"],
            times["first_round_started"] - measured.started_at,
            measured.peak_pss_megabytes,
            times["round_seconds"],
            [size / 1e6 for size in times["driver_after_round_bytes"]],
            times["driver_peak_of_rounds_bytes"] / 1e6,
        )

    def plain(self, prepared: Path, threads: int = 1) -> Figure:
        """The plain loop over the same sites."""
        measured = run([sys.executable, "-m", "tests.bench.plain_loop", str(prepared), str(threads)])
        first = json.loads(next(line for line in measured.output.splitlines() if "first_step" in line))
        return Figure(measured.seconds, _last_json(measured)["seconds"], first["time"] - measured.started_at, measured.peak_pss_megabytes)

    def new_folder(self) -> Path:
        """A fresh run folder."""
        self._count += 1
        return self._folder / f"run-{self._count}"


def _last_json(measured: Measured) -> dict[str, Any]:
    return dict(json.loads(measured.output.strip().splitlines()[-1]))


def interleaved(runs: dict[str, Callable[[], Figure]], repetitions: int = REPETITIONS) -> dict[str, list[Figure]]:
    """Each run so many times, taking turns."""
    figures: dict[str, list[Figure]] = {name: [] for name in runs}
    for _ in range(repetitions):
        for name, one in runs.items():
            figures[name].append(one())
    return figures


def least(figures: list[Figure], field: str) -> float:
    """The smallest value of a field."""
    return min(float(getattr(figure, field)) for figure in figures)


def paired(figures: list[Figure], base: list[Figure], field: str) -> float:
    """Median of the ratios of a field, turn by turn."""
    return median(getattr(figure, field) / getattr(other, field) for figure, other in zip(figures, base, strict=False))


def against_the_plain_loop(bench: Bench, console: Console) -> None:
    """One worker against the plain loop, and Flower's Ray engine with the same two apps."""
    bench.ours()
    prepared = bench._folder / "run-1"
    figures = interleaved(
        {
            "plain PyTorch loop": lambda: bench.plain(prepared),
            "Wardround, 1 worker": lambda: bench.ours(),
            "Wardround, 2 workers": lambda: bench.ours(workers=2),
            "Wardround, 1 worker, private": lambda: bench.ours(changes={**FIVE_ROUNDS, "privacy": {"delta": 1e-5}}),
        }
    )
    figures["Flower's Ray engine, same apps"] = [bench.ours(engine="ray")]
    table = Table(title="four sites, 5 rounds of 10 steps, cnn, shared chest X-rays, 1 thread; median of ratios to the plain loop")
    for column in ("", "wall s", "ratio", "training s", "ratio", "to first step s", "peak PSS MB", "above plain MB"):
        table.add_column(column, justify="left" if not column else "right")
    base = figures["plain PyTorch loop"]
    for name, runs in figures.items():
        wall, training = least(runs, "wall_seconds"), least(runs, "training_seconds")
        peak = median(figure.peak_megabytes for figure in runs)
        base_peak = median(figure.peak_megabytes for figure in base)
        table.add_row(
            name,
            f"{wall:.2f}",
            f"{paired(runs, base, 'wall_seconds'):.2f}",
            f"{training:.2f}",
            f"{paired(runs, base, 'training_seconds'):.2f}",
            f"{least(runs, 'to_first_step_seconds'):.2f}",
            f"{peak:.0f}",
            f"{peak - base_peak:+.0f}",
        )
    console.print(table)


def start_up(bench: Bench, console: Console) -> None:
    """Process start to first training step against importing torch and opacus."""
    imports = min(run([sys.executable, "-c", "import torch, opacus"]).seconds for _ in range(REPETITIONS))
    ours = min(bench.ours().to_first_step_seconds for _ in range(REPETITIONS))
    console.print(f"start to first round {ours:.2f} s; `import torch, opacus` {imports:.2f} s; difference {ours - imports:+.2f} s")


def two_workers(bench: Bench, console: Console) -> None:
    """Training time with two workers of one thread against one."""
    figures = interleaved({"1": lambda: bench.ours(changes=LONG), "2": lambda: bench.ours(changes=LONG, workers=2)})
    one, two = (least(figures[name], "training_seconds") for name in ("1", "2"))
    faster = paired(figures["1"], figures["2"], "training_seconds")
    console.print(f"two workers: training {two:.2f} s, one worker {one:.2f} s: {faster:.2f}x faster (median of turns)")


def many_sites(bench: Bench, console: Console) -> None:
    """100 sites of 40 patients against four such sites: seconds of a site-round, and the driver's memory over the rounds.

    The run with many sites is long enough to see both; the two short runs with four sites stand before and after it.
    """
    console.print(
        f"{MANY_SITES} sites of {PATIENTS_OF_A_SITE} patients, {MANY_ROUNDS} rounds; {FEW_SITES} sites, {FEW_ROUNDS} rounds; 1 worker"
    )
    few = _phantom_sites(FEW_SITES, FEW_ROUNDS)
    before = bench.ours(changes=few, sites=None, data=None)
    many = bench.ours(changes=_phantom_sites(MANY_SITES, MANY_ROUNDS), sites=None, data=None)
    after = bench.ours(changes=few, sites=None, data=None)
    four = median([_site_round_seconds(figure, FEW_SITES) for figure in (before, after)])
    hundred = _site_round_seconds(many, MANY_SITES)
    console.print(f"a site-round: {hundred * 1e3:.1f} ms with {MANY_SITES} sites, {four * 1e3:.1f} ms with {FEW_SITES}")
    _print_verdict(console, "times the four-site figure", hundred / four, MOST_TIMES_FOUR_SITES, "x")
    _print_driver_memory(console, many)


def _phantom_sites(sites: int, rounds: int) -> dict[str, Any]:
    return {**SMALL, "federation.rounds": rounds, "data.phantom": {"patients": sites * PATIENTS_OF_A_SITE, "scanners": sites}}


def _site_round_seconds(figure: Figure, sites: int) -> float:
    """Median over the rounds, without the first ones, in which workers start."""
    return median(figure.round_seconds[WARM_UP_ROUNDS:]) / sites


def _print_driver_memory(console: Console, figure: Figure) -> None:
    sizes = figure.driver_megabytes[WARM_UP_ROUNDS:]
    shown = " ".join(f"{size:.1f}" for size in figure.driver_megabytes)
    console.print(
        f"driver alone, unique memory in MB after each round: {shown}; most resident so far {figure.driver_peak_megabytes:.0f} MB"
    )
    console.print(f"peak PSS of the whole tree, report included: {figure.peak_megabytes:.0f} MB")
    half = len(sizes) // 2
    _print_verdict(
        console,
        "growth of the driver, first to second half of the rounds",
        max(sizes[half:]) - max(sizes[:half]),
        MOST_GROWTH_MEGABYTES,
        " MB",
    )


def _print_verdict(console: Console, what: str, value: float, limit: float, unit: str) -> None:
    verdict = "holds" if value <= limit else "DOES NOT HOLD"
    console.print(f"{verdict}: {what} {value:.2f}{unit}, at most {limit:g}{unit}")


def main() -> None:
    """All figures, or those named on the command line."""
    parts = {"plain": against_the_plain_loop, "start": start_up, "workers": two_workers, "sites": many_sites}
    console = Console(width=150)
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("WARDROUND_CACHE", str(Path(folder) / "cache"))
        for number, name in enumerate(sys.argv[1:] or parts):
            (Path(folder) / str(number)).mkdir()
            parts[name](Bench(Path(folder) / str(number)), console)


if __name__ == "__main__":
    main()
