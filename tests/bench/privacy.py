# SPDX-License-Identifier: Apache-2.0
"""What privacy costs in time and memory: ratios to a plain step of the same model, measured in one run.

    make bench-privacy                      everything, some ten minutes
    python -m tests.bench.privacy time noise memory
    BENCH_REPETITIONS=30 BENCH_THREADS=1 python -m tests.bench.privacy time

Ways take turns in every repetition, the least time of each counts, and every private step includes clipping, noise and update. Opacus
as it comes (`stock hooks`, `stock ghost`) protects rows, not patients, with noise from a seedable generator; ours protects patients.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

CONSOLE = Console(width=118)
REPETITIONS = int(os.environ.get("BENCH_REPETITIONS", "15"))
THREADS = int(os.environ.get("BENCH_THREADS", str(os.cpu_count() or 1)))
WAYS = ("plain", "bookkeeping", "opacus", "stock hooks", "stock ghost")
NOISE_NUMBERS = 11_200_000
NOISE_REQUIRED, NOISE_STRETCH = 1.2, 0.4


def least_seconds(steps: dict[str, Callable[[], object]], repetitions: int, label: str) -> dict[str, float]:
    """The least time of each step; they take turns."""
    best = dict.fromkeys(steps, float("inf"))
    for step in steps.values():
        step()
    for _ in track(range(repetitions), label, console=CONSOLE, transient=True):
        for name, step in steps.items():
            started = time.perf_counter()
            step()
            best[name] = min(best[name], time.perf_counter() - started)
    return best


def verdict(ratio: float, required: float, stretch: float) -> str:
    """In words."""
    return "stretch reached" if ratio <= stretch else "reached" if ratio <= required else "NOT reached"


def bench_time() -> None:
    """A step of each model in each way."""
    from tests.bench.private_models import CASES, step_of

    table = Table("model", "plain ms", *WAYS[1:], "required", "stretch", "", title=f"private step / plain step, {THREADS} threads")
    for case in CASES.values():
        heavy = case.model == "resnet18"  # stock Opacus takes seconds and gigabytes here; fewer turns, and 32 at a time as well
        repetitions = max(3, REPETITIONS // 5) if heavy or case.model == "head" else REPETITIONS
        best = least_seconds({way: step_of(case, way) for way in WAYS}, repetitions, case.name)
        ratios = {way: best[way] / best["plain"] for way in WAYS[1:]}
        table.add_row(
            case.name,
            f"{best['plain'] * 1e3:.1f}",
            *(f"{ratios[way]:.2f}" for way in WAYS[1:]),
            str(case.required),
            str(case.stretch),
            verdict(ratios["bookkeeping"], case.required, case.stretch),
        )
    CONSOLE.print(table)


def bench_noise() -> None:
    """Integer noise for 11.2 million parameters against a plain step of ResNet-18-GN, batch 32."""
    import torch

    from common.privacy.generator import SystemGenerator
    from common.privacy.noise import rounded_gaussian
    from tests.bench.private_models import MEMORY_CASE, plain_step

    generator = SystemGenerator()
    steps = {
        "plain": plain_step(MEMORY_CASE),
        "integer noise": lambda: rounded_gaussian(NOISE_NUMBERS, 2.0**20, generator),
        "torch.randn": lambda: torch.randn(NOISE_NUMBERS),
    }
    best = least_seconds(steps, REPETITIONS, "noise")
    table = Table("noise for 11.2M numbers", "ms", "/ plain step", "required", "stretch", "", title="noise")
    for name in ("integer noise", "torch.randn"):
        ratio = best[name] / best["plain"]
        goal = (
            (str(NOISE_REQUIRED), str(NOISE_STRETCH), verdict(ratio, NOISE_REQUIRED, NOISE_STRETCH)) if name != "torch.randn" else ("",) * 3
        )
        table.add_row(name, f"{best[name] * 1e3:.0f}", f"{ratio:.2f}", *goal)
    table.add_row("plain step, batch 32", f"{best['plain'] * 1e3:.0f}", "1.00", "", "", "")
    CONSOLE.print(table)


def bench_memory() -> None:
    """Peak extra memory of one step of ResNet-18-GN, batch 32: each way in a process of its own."""
    from tests.bench.private_models import MEMORY_CASE

    found = {way: _extra_megabytes(way) for way in track(WAYS, "memory", console=CONSOLE, transient=True)}
    table = Table("way", "extra MB", "/ plain", "required", "stretch", "", title=f"peak extra memory of a step, {MEMORY_CASE.name}")
    for way in WAYS:
        ratio = found[way] / found["plain"]
        ours = way == "bookkeeping"
        goal = (str(MEMORY_CASE.required), str(MEMORY_CASE.stretch), verdict(ratio, MEMORY_CASE.required, MEMORY_CASE.stretch))
        table.add_row(way, f"{found[way]:.0f}", f"{ratio:.2f}", *(goal if ours else ("",) * 3))
    CONSOLE.print(table)


def _extra_megabytes(way: str) -> float:
    command = [sys.executable, "-m", "tests.bench.privacy", "one-memory", way]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(1 << 20)}  # glibc gives freed blocks back: counted is what is in use
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.splitlines()[-1]))


def one_memory(way: str) -> None:
    """In the child: the high-water mark of resident memory over two steps, above what model and images take."""
    from tests.bench.private_models import MEMORY_CASE, step_of

    step = step_of(MEMORY_CASE, way)
    before = _status_kilobytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    step()
    step()
    sys.stdout.write(json.dumps((_status_kilobytes("VmHWM") - before) / 1024) + "\n")


def _status_kilobytes(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key))


PARTS = {"time": bench_time, "noise": bench_noise, "memory": bench_memory}


def main(arguments: list[str]) -> None:
    """Run the parts that are named, or all."""
    import torch

    torch.set_num_threads(THREADS)
    if arguments[:1] == ["one-memory"]:
        one_memory(arguments[1])
        return
    for part in arguments or PARTS:
        PARTS[part]()


if __name__ == "__main__":
    main(sys.argv[1:])
