# SPDX-License-Identifier: Apache-2.0
"""A call in another thread, if one can be had; else in that of whoever wants its result.

`Thread.start`, and with it every pool, waits for the new thread to say that it runs. Where memory ends at that moment the thread dies
without a word, and its parent waits for ever: a training process that should have been refused its round would hang. Here nobody waits
for a thread that has not begun.
"""

from __future__ import annotations

from _thread import start_new_thread
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from threading import Lock
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Aside(Generic[Result]):
    """`call` is made once. Its result, or what it raised, is for whoever asks, as often as they ask."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._claim = Lock()
        self._future: Future[Result] = Future()
        with suppress(RuntimeError, MemoryError):
            start_new_thread(self._make, ())

    def result(self) -> Result:
        """What the call returned; made here and now if no thread has begun it. Raises what it raised."""
        self._make()
        return self._future.result()

    def _make(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._future.set_result(self._call())
        except BaseException as error:  # noqa: BLE001 (raised again where the result is asked for)
            self._future.set_exception(error)
