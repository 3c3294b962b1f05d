# SPDX-License-Identifier: Apache-2.0
"""A call in another thread, if one can be had; else in that of whoever wants its result.

`Thread.start`, and with it every pool, waits for the new thread to say that it runs. Where memory ends at that moment the thread dies
without a word, and its parent waits for ever: a training process that should have been refused its round would hang. Here nobody waits
for a thread that has not begun.
"""

from __future__ import annotations

from _thread import start_new_thread
from collections.abc import Callable
from contextlib import suppress
from threading import Lock
from typing import Final, Generic, TypeVar

from common.errors import WardroundError

Result = TypeVar("Result")
FAILURES: Final = (WardroundError, ArithmeticError, LookupError, MemoryError, OSError, RuntimeError, TypeError, ValueError)
"""What is carried from the thread to whoever asks. Anything else is shown on the error output, and they get another error."""


class Aside(Generic[Result]):
    """`call` is made once. Its result, or what it raised, is for whoever asks, as often as they ask."""

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._claim, self._running = Lock(), Lock()
        self._made: list[Result] = []
        self._failure: BaseException | None = None
        self._running.acquire()  # until the call has ended, however it ends: giving it free takes no memory
        with suppress(RuntimeError, MemoryError):
            start_new_thread(self._make, ())

    def result(self) -> Result:
        """What the call returned; made here and now if no thread has begun it. Raises what it raised."""
        self._make()
        with self._running:
            if self._failure is not None:
                raise self._failure
            if not self._made:
                raise RuntimeError("a call in another thread ended without a result; the error output says why")
            return self._made[0]

    def _make(self) -> None:
        if not self._claim.acquire(blocking=False):
            return
        try:
            self._made.append(self._call())
        except FAILURES as failure:
            self._failure = failure
        finally:
            self._running.release()
