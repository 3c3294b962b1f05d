# SPDX-License-Identifier: Apache-2.0
"""Runs tests in copies of the checkout, first unchanged and then with one mutation at a time.

The unchanged code must pass every test that a mutation names; then each mutation must make at least one of its own tests fail. A
mutation that can no longer be made, tests that cannot be collected, and a run that takes too long are failures of the suite itself.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from queue import SimpleQueue

from tests.mutations import warm
from tests.mutations.mutation import Mutation, restore

TIMEOUT_SECONDS = 300.0
PARTS = ("common", "client", "server", "simulations", "tests", "docs")
FILES = ("pyproject.toml", "README.md", "CHANGELOG.md", "Makefile")


class Verdict(StrEnum):
    """What became of a mutation. Only KILLED is good."""

    KILLED = "killed"
    SURVIVED = "SURVIVED"
    BROKEN = "BROKEN"
    HUNG = "HUNG"
    STALE = "STALE"


@dataclass(frozen=True)
class Outcome:
    """`detail` is the test that failed first, or what went wrong."""

    name: str
    verdict: Verdict
    detail: str
    seconds: float


def copy_checkout(source: Path, target: Path) -> Path:
    """The code and the tests of `source`, without anything generated; data that lies beside the checkout stays in reach."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", ".*")
    for part in PARTS:
        if (source / part).is_dir():
            shutil.copytree(source / part, target / part, ignore=ignored)
    for name in FILES:
        if (source / name).is_file():
            shutil.copy2(source / name, target / name)
    shared = source.parent / "shared"
    if shared.is_dir():
        (target.parent / "shared").symlink_to(shared)
    return target


def run_tests(root: Path, tests: Sequence[str], *, timeout_seconds: float = TIMEOUT_SECONDS) -> tuple[Verdict, str]:
    """Run `tests` in `root`, in a process of their own, until one fails. SURVIVED means that all passed."""
    output = root.parent / "output"
    process = warm.process(root, ["-x", "-q", "--tb=short", "-rfE", *tests], output)
    process.start()
    process.join(timeout_seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        return Verdict.HUNG, f"no end after {timeout_seconds:g} s"
    said = output.read_text(encoding="utf-8", errors="replace")
    failed = re.findall(r"^FAILED (.+?)(?: - |$)", said, re.MULTILINE)
    if process.exitcode == 0:
        return Verdict.SURVIVED, "every test passed"
    if process.exitcode == 1 and failed:
        return Verdict.KILLED, failed[0]
    return Verdict.BROKEN, said.strip()[-2000:]


def run_mutation(root: Path, mutation: Mutation) -> Outcome:
    """Make one mutation in the copy `root`, run its tests, and undo it."""
    started = time.monotonic()
    problems = mutation.problems(root)
    if problems:
        return Outcome(mutation.name, Verdict.STALE, "; ".join(problems), 0.0)
    before = mutation.apply(root)
    try:
        verdict, detail = run_tests(root, mutation.tests)
    finally:
        restore(before)
    return Outcome(mutation.name, verdict, detail, time.monotonic() - started)


def run_baseline(roots: Sequence[Path], mutations: Sequence[Mutation]) -> Outcome:
    """All tests of all mutations on the unchanged code, shared among the copies; KILLED here means that a test fails anyway."""
    started = time.monotonic()
    tests = sorted({test for mutation in mutations for test in mutation.tests})
    shares = [share for number in range(len(roots)) if (share := tests[number :: len(roots)])]
    with ThreadPoolExecutor(len(roots)) as pool:
        results = list(pool.map(_baseline_share, roots, shares))
    bad = [(verdict, detail) for verdict, detail in results if verdict is not Verdict.SURVIVED]
    verdict, detail = bad[0] if bad else (Verdict.SURVIVED, f"{len(tests)} tests or files pass")
    return Outcome("nothing is broken", verdict, detail, time.monotonic() - started)


def _baseline_share(root: Path, tests: Sequence[str]) -> tuple[Verdict, str]:
    return run_tests(root, tests, timeout_seconds=4 * TIMEOUT_SECONDS)


def run_all(roots: Sequence[Path], mutations: Sequence[Mutation]) -> Iterator[Outcome]:
    """Outcomes in the order of `mutations`, as many at once as there are copies."""
    free: SimpleQueue[Path] = SimpleQueue()
    for root in roots:
        free.put(root)

    def one(mutation: Mutation) -> Outcome:
        root = free.get()
        try:
            return run_mutation(root, mutation)
        finally:
            free.put(root)

    with ThreadPoolExecutor(len(roots)) as pool:
        yield from pool.map(one, mutations)


def make_copies(source: Path, folder: Path, count: int) -> list[Path]:
    """`count` copies of the checkout under `folder`."""
    for number in range(count):
        (folder / str(number)).mkdir()
    return [copy_checkout(source, folder / str(number) / "checkout") for number in range(count)]
