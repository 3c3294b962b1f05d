# SPDX-License-Identifier: Apache-2.0
"""Run a command as a user would and watch it: wall time, and memory as PSS over its whole process tree."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

SAMPLE_SECONDS = 0.2


@dataclass(frozen=True)
class Measured:
    """One run: seconds from start to end, highest PSS of the tree in MB, the wall-clock time of the start, and stdout."""

    seconds: float
    peak_pss_megabytes: float
    started_at: float
    output: str


def run(command: Sequence[str], environment: dict[str, str] | None = None) -> Measured:
    """Run to the end. Raises CalledProcessError with the output when it fails."""
    started_at, started = time.time(), time.monotonic()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **(environment or {})}
    )
    watcher = _Watcher(process.pid)
    output, _ = process.communicate()
    seconds = time.monotonic() - started
    peak = watcher.stop()
    if process.returncode:
        error = subprocess.CalledProcessError(process.returncode, command, output)
        error.add_note(output)
        raise error
    return Measured(seconds, peak / 1e6, started_at, output)


class _Watcher:
    """Samples the memory of a process tree until it is stopped."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._peak = 0
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        self._stopped.set()
        self._thread.join()
        return self._peak

    def _watch(self) -> None:
        while not self._stopped.wait(SAMPLE_SECONDS):
            self._peak = max(self._peak, tree_pss_bytes(self._root))


def tree_pss_bytes(root: int) -> int:
    """Proportional set size of a process and all its descendants: shared pages count once."""
    try:
        processes = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    return sum(_pss_bytes(process) for process in processes)


def _pss_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
        return 0
