# SPDX-License-Identifier: Apache-2.0
"""`make bench-federation`: a round without training and memory at rest, ours beside plain Flower in its default mode, in one run.

Both sides are real processes on loopback with TLS and node authentication. Ours goes through everything that a hospital has: gateway with
client certificates, signed study, approval, ledger, worker process, egress log. "Without training" means one step on about one image: the
seconds that the site itself spends are shown beside the round, and are part of it. Repetitions take turns, and a ratio is the median of
the ratios within a turn, because a shared machine drifts.
"""

from __future__ import annotations

import os
import signal
import sqlite3
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import psutil
from rich.console import Console
from rich.table import Table

from common.study import Study
from tests.bench.measure import tree_pss_bytes
from tests.bench.plain_flower import PlainFlower
from tests.support.federation import Federation, start_federation

REPETITIONS = int(os.environ.get("BENCH_REPETITIONS", "2"))
SAMPLE_SECONDS = 0.5
SMALL, LARGE = "cnn", "resnet18"
SMALL_FLOATS = 23_921
ROUNDS = {SMALL: 12, LARGE: 12}
MOST_OF_PLAIN, STRETCH_OF_PLAIN = 0.07, 0.03
MOST_LARGE_SECONDS, STRETCH_LARGE_SECONDS = 2.5, 1.2
MOST_GROWTH = 1.2
MOST_ABOVE_TRAINING_MEGABYTES = 300.0
NAMES = ("one", "two", "three", "four")


@dataclass(frozen=True)
class Memory:
    """A run of ours, in MB: server at rest and at most, one site at most, its worker, the site without its worker."""

    server_idle: float
    server_peak: float
    site_peak: float
    worker_peak: float
    site_above_worker: float


def study(model: str, sites: int) -> Study:
    """One step on one image, no privacy, no evaluation."""
    from tests.support.studies import small

    changes = {"name": f"bench-{model}-{sites}", "data.source": "npz", "model.name": model, "data.image_size": 16, "evaluation.every": 0}
    changes |= {
        "federation.rounds": ROUNDS[model],
        "federation.min_sites": sites,
        "training.local_steps": 1,
        "training.sampling_rate": 0.01,
    }
    return small("none", **changes)


@contextmanager
def ours(folder: Path, sites: int) -> Iterator[Federation]:
    """Our federation of so many hospitals."""
    federation = start_federation(folder, NAMES[:sites], ())
    try:
        yield federation
    finally:
        federation.stop()


@contextmanager
def plain(folder: Path, sites: int) -> Iterator[PlainFlower]:
    """Plain Flower with so many nodes."""
    flower = PlainFlower(folder, sites)
    try:
        flower.start()
        yield flower
    finally:
        flower.stop()


class Sampler:
    """Peaks of memory (PSS) of process trees, until it is stopped. `above_child` is a tree without its largest descendant."""

    def __init__(self, roots: list[int]) -> None:
        self.peak = dict.fromkeys(roots, 0)
        self.child_peak = dict.fromkeys(roots, 0)
        self.above_child = dict.fromkeys(roots, 0)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            for root in self.peak:
                self._sample(root)

    def _sample(self, root: int) -> None:
        sizes = dict(tree_sizes(root))
        total = sum(sizes.values())
        largest = max((size for pid, size in sizes.items() if pid != root), default=0)
        self.peak[root] = max(self.peak[root], total)
        self.child_peak[root] = max(self.child_peak[root], largest)
        self.above_child[root] = max(self.above_child[root], total - largest)


def tree_sizes(root: int) -> Iterator[tuple[int, int]]:
    """PSS of each process of a tree, by id."""
    try:
        processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in processes:
        try:
            yield process.pid, int(process.memory_full_info().pss)
        except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
            continue


def run_ours(federation: Federation, model: str, repetition: int) -> list[float]:
    """One run of the model at all sites of the federation; seconds of its rounds but the first two."""
    names = tuple(federation.hospitals)
    chosen = study(model, len(names)).with_changes({"seed": repetition})
    for name in names:
        federation.change_settings(
            name, "allow", unprotected_studies=[chosen.id], train_after_unprotected="a benchmark on synthetic images"
        )
    return round_seconds(federation, federation.train(chosen, names))


def watched(federation: Federation, model: str, repetition: int) -> Memory:
    """Such a run, with an eye on memory: looking through the pages of every process slows a round down, so it is not timed."""
    assert federation.server is not None
    server, site = federation.server.pid, federation.sites[next(iter(federation.hospitals))].pid
    idle = tree_pss_bytes(server) / 1e6
    sampler = Sampler([server, site])
    try:
        run_ours(federation, model, repetition)
    finally:
        sampler.stop()
    figures = (sampler.peak[server], sampler.peak[site], sampler.child_peak[site], sampler.above_child[site])
    return Memory(idle, *(figure / 1e6 for figure in figures))


def round_seconds(federation: Federation, run_id: str) -> list[float]:
    """Seconds of each round from the run store, without the first two, in which processes start."""
    path = federation.coordinator / "runs" / run_id / "rounds.sqlite"
    with closing(sqlite3.connect(path)) as database:
        return [float(seconds) for (seconds,) in database.execute("SELECT seconds FROM rounds ORDER BY round")][2:]


def small_rounds(folder: Path, console: Console) -> None:
    """0.1 MB, two sites, ours and plain Flower in turns."""
    mine: list[float] = []
    theirs: list[float] = []
    with ours(folder / "ours", 2) as federation, plain(folder / "plain", 2) as flower:
        for repetition in range(REPETITIONS):
            mine.append(median(run_ours(federation, SMALL, repetition)))
            theirs.append(median(flower.rounds(SMALL_FLOATS)))
    ratio = median(a / b for a, b in zip(mine, theirs, strict=True))
    console.print(f"0.1 MB, 2 sites: a round {median(mine):.2f} s, plain Flower {median(theirs):.1f} s, ratio {ratio:.3f}")
    verdict(console, "ratio to plain Flower", ratio, MOST_OF_PLAIN, STRETCH_OF_PLAIN)


def large_rounds(folder: Path, console: Console) -> None:
    """45 MB with two and with four sites: seconds of a round, memory of the server and of a site."""
    found: dict[int, Memory] = {}
    seconds: dict[int, float] = {}
    stolen: dict[int, float] = {}
    """Per cent of the processors' time that this machine's host gave to others meanwhile."""
    for sites in (2, 4):
        with ours(folder / f"ours-{sites}", sites) as federation:
            found[sites] = watched(federation, LARGE, 0)
            psutil.cpu_times_percent()
            seconds[sites] = median(run_ours(federation, LARGE, 1))
            stolen[sites] = float(getattr(psutil.cpu_times_percent(), "steal", 0.0))
    table = Table(title="45 MB model, no training; memory as PSS of the process tree, MB")
    server, site = ("server idle", "server peak", "server above idle"), ("site peak", "its worker", "site above worker")
    for column in ("sites", "s a round", *server, *site, "% stolen"):
        table.add_column(column, justify="right")
    for sites, one in found.items():
        above = one.server_peak - one.server_idle
        figures = (one.server_idle, one.server_peak, above, one.site_peak, one.worker_peak, one.site_above_worker)
        table.add_row(str(sites), f"{seconds[sites]:.2f}", *(f"{figure:.0f}" for figure in (*figures, stolen[sites])))
    console.print(table)
    two, four = found[2], found[4]
    verdict(console, "seconds a round, 45 MB, 2 sites", seconds[2], MOST_LARGE_SECONDS, STRETCH_LARGE_SECONDS)
    growth = (four.server_peak - four.server_idle) / (two.server_peak - two.server_idle)
    verdict(console, "server's extra memory, 4 sites over 2", growth, MOST_GROWTH)
    verdict(console, "a site above its training process, MB", two.site_above_worker, MOST_ABOVE_TRAINING_MEGABYTES)


def idle_memory(folder: Path, console: Console) -> None:
    """Memory at rest of server and site, both sides."""
    table = Table(title="memory at rest (PSS of the process tree, MB), two sites")
    for column in ("", "server", "a site"):
        table.add_column(column, justify="left" if not column else "right")
    with ours(folder / "ours", 2) as federation, plain(folder / "plain", 2) as flower:
        assert federation.server is not None
        server, site = flower.idle_megabytes()
        mine = tree_pss_bytes(federation.server.pid) / 1e6
        site_mine = median(tree_pss_bytes(process.pid) / 1e6 for process in federation.sites.values())
        table.add_row("Wardround", f"{mine:.0f}", f"{site_mine:.0f}")
        table.add_row("plain Flower", f"{server:.0f}", f"{site:.0f}")
        run_ours(federation, SMALL, 0)
        after = median(tree_pss_bytes(process.pid) / 1e6 for process in federation.sites.values())
        table.add_row("Wardround after a run", f"{tree_pss_bytes(federation.server.pid) / 1e6:.0f}", f"{after:.0f}")
    console.print(table)


def verdict(console: Console, what: str, value: float, limit: float, stretch: float | None = None) -> None:
    """Whether a figure keeps its limit."""
    word = "holds" if value <= limit else "DOES NOT HOLD"
    aim = "" if stretch is None else f" (stretch {stretch:g}: {'reached' if value <= stretch else 'not reached'})"
    console.print(f"{word}: {what} {value:.3g}, at most {limit:g}{aim}")


PARTS: dict[str, Callable[[Path, Console], None]] = {"small": small_rounds, "large": large_rounds, "memory": idle_memory}


def main() -> None:
    """All parts, or those named on the command line."""
    console = Console(width=150)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a polite kill stops the processes too
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("WARDROUND_CACHE", str(Path(folder) / "cache"))
        for name in sys.argv[1:] or PARTS:
            PARTS[name](Path(folder) / name, console)


if __name__ == "__main__":
    main()
