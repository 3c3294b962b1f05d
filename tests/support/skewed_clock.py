# SPDX-License-Identifier: Apache-2.0
"""A process whose wall clock goes wrong, by a shim (`skewed_clock.c`); nobody else's clock does."""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")


def compiled(source: Path, folder: Path) -> Path:
    """The library of a shim in C, made in `folder`; without a compiler on Linux the test is skipped."""
    if COMPILER is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler on Linux")
    library = folder / f"{source.stem}.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl", "-lm"], check=True)
    return library


class SkewedClock:
    """The clock of the processes that are started with `environment`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._path = folder / "shift"
        self.set(0.0)
        library = compiled(Path(__file__).with_suffix(".c"), folder)
        self.environment = {"LD_PRELOAD": str(library), "WARDROUND_CLOCK": str(self._path)}

    def set(self, seconds: float) -> None:
        """From now on the clock is so many seconds ahead, or behind if less than nothing. The file is written in place: it is mapped."""
        with self._path.open("rb+" if self._path.exists() else "wb", buffering=0) as file:
            file.write(struct.pack("d", seconds))
