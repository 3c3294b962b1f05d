# SPDX-License-Identifier: Apache-2.0
"""Processes that run pytest in a copy of the checkout without importing torch and its like each time.

They are forked from one server that has loaded other people's libraries and none of ours, so each sees only the copy's code.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path

LIBRARIES = [
    "torch",
    "opacus.optimizers",
    "opacus.grad_sample",
    "dp_accounting.pld",
    "dp_accounting.rdp",
    "flwr.app",
    "flwr.clientapp",
    "safetensors.torch",
    "scipy.stats",
    "pydantic",
    "pytest",
]
OURS = ("common", "client", "server", "simulations", "tests")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def process(root: Path, arguments: Sequence[str], output: Path) -> ForkServerProcess:
    """A process, not yet started, that runs pytest with `arguments` in `root`; what it says goes to `output`."""
    os.environ.update(ENVIRONMENT)  # the server takes them over at its start
    context = get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    return context.Process(target=_run, args=(str(root), list(arguments), str(output)))


def _run(root: str, arguments: list[str], output: str) -> None:
    """In the new process: forget our modules, look at the copy, run pytest."""
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(root)
    os.environ["PYTHONPATH"] = root
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]
    sys.path[:] = [root, *(path for path in sys.path if not _is_checkout(path))]
    sys.argv = ["pytest"]
    forkserver.ensure_running = lambda: None  # the tests' own server loads torch again: it starts when a test needs it

    import pytest

    sys.exit(int(pytest.main([f"--rootdir={root}", *arguments])))


def _is_checkout(path: str) -> bool:
    """Whether our packages would be found in `path`."""
    return (Path(path or ".") / "common" / "privacy").is_dir()
