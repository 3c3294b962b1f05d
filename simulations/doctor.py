# SPDX-License-Identifier: Apache-2.0
"""Looks at the machine and says whether Wardround can work on it: Python, libraries, devices, threads, memory, disk.

Each check is made on its own and reports what it found; nothing is changed.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.files import cache_folder

OLDEST_PYTHON, FIRST_UNTESTED_PYTHON = (3, 11), (3, 14)
MIN_FREE_DISK_BYTES = 2 << 30
MIN_FREE_MEMORY_BYTES = 2 << 30
_LIBRARIES = ("torch", "torchvision", "flwr", "opacus", "dp-accounting", "ray")


@dataclass(frozen=True)
class Check:
    """One thing looked at. `remedy` says what to do and is empty when all is well."""

    name: str
    found: str
    remedy: str = ""

    @property
    def is_good(self) -> bool:
        """Whether nothing has to be done."""
        return not self.remedy


def examine() -> list[Check]:
    """All checks, in the order in which a person would ask."""
    return [
        _python(),
        *_libraries(),
        _device(),
        _threads(),
        _memory(),
        _disk("disk here", Path.cwd()),
        _disk("disk of the cache", cache_folder()),
    ]


def as_facts(checks: list[Check]) -> dict[str, Any]:
    """The checks as one object for machines."""
    return {"good": all(check.is_good for check in checks), "checks": [asdict(check) for check in checks]}


def print_checks(checks: list[Check], console: Console) -> None:
    """One row for each check, and under it what to do."""
    table = Table(show_header=False)
    for check in checks:
        table.add_row(Text("ok", "green") if check.is_good else Text("wrong", "bold red"), check.name, Text(check.found))
        if check.remedy:
            table.add_row("", "", Text(check.remedy, "bold"))
    console.print(table)


def _python() -> Check:
    found = f"{platform.python_version()} ({sys.executable})"
    if OLDEST_PYTHON <= sys.version_info[:2] < FIRST_UNTESTED_PYTHON:
        return Check("Python", found)
    return Check("Python", found, "Wardround runs on Python 3.11 to 3.13; make the environment anew with one of them")


def _libraries() -> Iterator[Check]:
    wanted = _requirements()
    for name in _LIBRARIES:
        try:
            version = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, "not installed", "install Wardround again: make clean, then make simulate")
            continue
        allowed = wanted.get(name)
        is_good = allowed is None or allowed.contains(version, prereleases=True)
        yield Check(name, version, "" if is_good else f"this Wardround needs {name} {allowed}; make clean, then make simulate")


def _requirements() -> dict[str, Any]:
    """The versions that the installed Wardround asks for (`packaging` specifiers by name)."""
    from packaging.requirements import Requirement

    try:
        lines = metadata.requires("wardround") or []
    except metadata.PackageNotFoundError:
        return {}
    return {requirement.name: requirement.specifier for requirement in map(Requirement, lines)}


def _device() -> Check:
    try:
        import torch
    except ImportError as error:
        return Check(
            "device",
            f"torch cannot be imported ({error.name or type(error).__name__})",
            "install torch again: make clean, then make simulate",
        )
    if not torch.cuda.is_available():
        return Check("device", "cpu (no CUDA device; that is enough for the shipped studies)")
    names = (f"cuda:{number} {torch.cuda.get_device_name(number)}" for number in range(torch.cuda.device_count()))
    return Check("device", ", ".join(("cpu", *names)))


def _threads() -> Check:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Check("threads", f"{usable} usable of {os.cpu_count()}")


def _memory() -> Check:
    free = _free_memory_bytes()
    if free is None:
        return Check("memory", "cannot be measured on this system")
    remedy = "" if free >= MIN_FREE_MEMORY_BYTES else "close other programs, or run with --workers 1; about 2 GB are needed"
    return Check("memory", f"{_gigabytes(free)} free", remedy)


def _free_memory_bytes() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), None)


def _disk(name: str, folder: Path) -> Check:
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    found = f"{_gigabytes(free)} free at {folder}"
    if not os.access(nearest, os.W_OK):
        return Check(name, found, f"{nearest} is not writable; change its permissions, or set WARDROUND_CACHE for the cache")
    return Check(name, found, "" if free >= MIN_FREE_DISK_BYTES else "free some space; about 2 GB are needed")


def _gigabytes(size_bytes: int) -> str:
    return f"{size_bytes / 2**30:.1f} GB"
