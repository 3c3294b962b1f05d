# SPDX-License-Identifier: Apache-2.0
"""Folders in memory where there is such a thing: these tests write thousands of synced rows, and none of them cuts the power for real."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MEMORY = Path("/dev/shm")


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    where = MEMORY if MEMORY.is_dir() and os.access(MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where, prefix="wardround-ledger-") as folder:
        yield Path(folder)
