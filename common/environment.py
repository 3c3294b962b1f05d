# SPDX-License-Identifier: Apache-2.0
"""Switches of the libraries below us that must be set before they are imported.

Flower and Ray call home unless told not to, and Flower may install packages at run time. `common/__init__.py` applies these, and every
module of ours imports `common` first, so no process of Wardround runs without them. What the user set already is left alone, except
that nothing may switch telemetry on.

`MEMORY` is read by the C library when a process starts, so it works in the processes that this one starts: those that train, those of a
server. Memory that a tensor gets for the first time costs a page fault for every 4 KiB, and that is a good part of a training step on a
processor and of each copy of a model; with large pages it is one for every 2 MiB. Without Linux and its own C library it does nothing.
"""

from __future__ import annotations

import os

from common.files import cache_folder

FORCED = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}
MEMORY = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}


def apply() -> None:
    """Set the switches in this process and for its children."""
    os.environ.update(FORCED)
    for name, value in MEMORY.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("FLWR_HOME", str(cache_folder() / "flower"))
