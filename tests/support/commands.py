# SPDX-License-Identifier: Apache-2.0
"""The command line in real processes."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMMAND = (sys.executable, "-m", "simulations.cli")


def start(*arguments: str | Path, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Start `wardround-sim` in a process group of its own."""
    return subprocess.Popen(
        [*COMMAND, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, **(environment or {})},
    )


def run(*arguments: str | Path, expect: int = 0, environment: dict[str, str] | None = None) -> tuple[str, str]:
    """Run it to the end; stdout and stderr."""
    process = start(*arguments, environment=environment)
    out, err = process.communicate(timeout=300)
    assert process.returncode == expect, f"exit {process.returncode}, expected {expect}\n{out}\n{err}"
    return out, err


def run_json(*arguments: str | Path, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Run it with --json; the one object that it prints."""
    out, _ = run(*arguments, "--json", environment=environment)
    return json.loads(out)


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Wait until something is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
