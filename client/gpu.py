# SPDX-License-Identifier: Apache-2.0
"""Memory of the graphics cards as the driver's own tool says it: torch stays out of the daemon, which has to be small."""

from __future__ import annotations

import shutil
import subprocess
from typing import Final, NamedTuple

TOOL: Final = "nvidia-smi"
QUERY: Final = ("--query-gpu=index,memory.used,memory.total", "--format=csv,noheader,nounits")
TIMEOUT_SECONDS: Final = 5.0
_MEBIBYTE: Final = 1 << 20


class CardMemory(NamedTuple):
    """One card, by its number."""

    number: int
    used_bytes: int
    total_bytes: int


def card_memory() -> list[CardMemory]:
    """Memory of each card; none where there is no card, or no driver for one."""
    tool = shutil.which(TOOL)
    if tool is None:
        return []
    try:
        done = subprocess.run([tool, *QUERY], capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [card for line in done.stdout.splitlines() if (card := _card(line)) is not None]


def _card(line: str) -> CardMemory | None:
    """One line `0, 1024, 81920` (MiB); None where the driver does not say (`[N/A]`)."""
    try:
        number, used, total = (int(part) for part in line.split(","))
    except ValueError:
        return None
    return CardMemory(number, used * _MEBIBYTE, total * _MEBIBYTE)
