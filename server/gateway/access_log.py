# SPDX-License-Identifier: Apache-2.0
"""The access log: one JSON line a request, in rotated files. Who, what, how it ended, how many bytes; never a body, a token or a key.

Two kinds of request come by the thousand and say nothing: a site asking whether there is a message when there is none, its heartbeats, and
requests over the limit. They are counted, and the count is one line a minute.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Final

from server.gateway.denied import Code

MAX_FILE_BYTES: Final = 10 << 20
OLD_FILES: Final = 9
QUIET_SECONDS: Final = 60.0
MAX_PATH: Final = 120
MAX_COUNTED: Final = 1000


class AccessLog:
    """Lines in `folder`/access.log. `clock` gives the time of day in seconds."""

    def __init__(self, folder: Path, clock: Callable[[], float] = time.time) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = RotatingFileHandler(folder / "access.log", maxBytes=MAX_FILE_BYTES, backupCount=OLD_FILES, encoding="utf-8")
        self._log = logging.Logger("access")
        self._log.addHandler(handler)
        self._handler, self._clock = handler, clock
        self._counts: dict[tuple[str, str], int] = {}
        self._since = clock()

    def write(self, line: dict[str, str | int | float | None]) -> None:
        """One request. What is None is left out."""
        self._flush_counts()
        if line.pop("routine", None) or line.get("code") == Code.TOO_MANY_REQUESTS:
            key = (str(line.get("site") or line.get("address")), str(line.get("code") or line.get("path")))
            if key in self._counts or len(self._counts) < MAX_COUNTED:
                self._counts[key] = self._counts.get(key, 0) + 1
                return
        self._put(line)

    def close(self) -> None:
        """Write what was only counted, and close the file."""
        self._flush_counts(at_once=True)
        self._handler.close()

    def _flush_counts(self, at_once: bool = False) -> None:
        now = self._clock()
        if not at_once and now - self._since < QUIET_SECONDS:
            return
        for (who, what), count in self._counts.items():
            self._put({"who": who, "what": what, "count": count, "seconds": round(now - self._since, 1)})
        self._counts, self._since = {}, now

    def _put(self, line: dict[str, str | int | float | None]) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._clock()))
        known = {key: value for key, value in line.items() if value is not None}
        self._log.info("%s", json.dumps({"time": stamp, **known}))


def printable_path(path: bytes) -> str:
    """A path as it may stand in a log: ASCII, bounded."""
    return path[:MAX_PATH].decode("ascii", "backslashreplace")
