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
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Figure:
    """One run's figures: `wall_seconds` until the model is trained, `training_seconds` from the first round's start."""

    wall_seconds: float
    training_seconds: float
    to_first_step_seconds: float
    peak_megabytes: float


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
    """100 sites of 40 patients against four sites with the same images, and the driver's memory over rounds."""
    data = {"data.source": "phantom", "data.label_key": "labels", "data.labels": ["normal", "opacity"], "data.label_values": None}
    many = {**FIVE_ROUNDS, **data, "data.phantom": {"patients": 4000, "scanners": 100}, "training.sampling_rate": 1.0}
    few = {**many, "data.phantom": {"patients": 160, "scanners": 4}}
    bench.ours(changes=many, sites=None, data=None)
    figures = interleaved(
        {
            "4": lambda: bench.ours(changes=few, sites=None, data=None),
            "100": lambda: bench.ours(changes=many, sites=None, data=None),
            "100, 15 rounds": lambda: bench.ours(changes={**many, "federation.rounds": 15}, sites=None, data=None),
        },
        repetitions=2,
    )
    per_site = {name: least(runs, "training_seconds") for name, runs in figures.items()}
    four, hundred = per_site["4"] / (4 * 5), per_site["100"] / (100 * 5)
    console.print(f"100 sites of 40 patients: {hundred * 1e3:.1f} ms a site-round, four sites {four * 1e3:.1f} ms: {hundred / four:.2f}x")
    short, long = (max(figure.peak_megabytes for figure in figures[name]) for name in ("100", "100, 15 rounds"))
    console.print(f"peak PSS of the tree: 5 rounds {short:.0f} MB, 15 rounds {long:.0f} MB: {long / short:.2f}x")


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
