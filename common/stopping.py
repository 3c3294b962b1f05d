# SPDX-License-Identifier: Apache-2.0
"""SIGTERM and Ctrl-C as an event: a service ends in order, and who called it has its own handlers back afterwards."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopped_by_signal(stopping: threading.Event) -> Iterator[None]:
    """While the block runs, SIGTERM and SIGINT set `stopping` and do nothing else. For the main thread."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
