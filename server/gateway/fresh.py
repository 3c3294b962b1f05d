# SPDX-License-Identifier: Apache-2.0
"""What was read from the coordinator's database, remembered for as long as nobody has written to it, and one second at most.

So a revocation counts for the very next request, and a thousand requests between two writes read the database once.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Final, TypeVar, cast

from common.errors import StorageError

MAX_AGE_SECONDS: Final = 1.0
Value = TypeVar("Value")


class Fresh:
    """Values that were read from the database in `path`, by key. For one event loop."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._clock = path, clock
        self._watch = sqlite3.connect(path, isolation_level=None)
        self._values: dict[Hashable, object] = {}
        self._version, self._since = -1, 0.0

    async def get(self, key: Hashable, read: Callable[[], Value]) -> Value:
        """The value of `key`; `read` runs in a thread when it is not known or may be old. Raises StorageError, and what `read` raises."""
        self._forget_if_old()
        if key in self._values:
            return cast(Value, self._values[key])
        values = self._values
        value = await asyncio.to_thread(read)
        values[key] = value  # lands nowhere if all was forgotten meanwhile
        return value

    def close(self) -> None:
        """Close the database."""
        self._watch.close()

    def _forget_if_old(self) -> None:
        try:
            version = self._watch.execute("PRAGMA data_version").fetchone()[0]
        except sqlite3.DatabaseError as error:
            raise StorageError(f"{self._path}: cannot be read ({error})") from error
        now = self._clock()
        if version != self._version or now - self._since > MAX_AGE_SECONDS:
            self._values, self._version, self._since = {}, version, now
