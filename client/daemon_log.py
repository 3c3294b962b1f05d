# SPDX-License-Identifier: Apache-2.0
"""`logs/daemon.log`: one JSON object a line, rotated; and a short line for the terminal or the service manager.

Only names of things that the coordinator knows anyway are written: codes, ids, numbers, addresses. What a failure says about data is in
`site.log`, never here.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

MAX_BYTES = 5_000_000
KEPT_FILES = 5
LOG_FILE = "daemon.log"


class DaemonLog:
    """Writes events, each with the name of the `site`. A log that cannot be written (full disk) never stops the daemon."""

    def __init__(self, folder: Path, terminal: TextIO | None = None, site: str | None = None) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder / LOG_FILE
        self._terminal = terminal
        self._always = {} if site is None else {"site": site}
        self._logger = logging.Logger("wardround.daemon")
        self._handler = _PrivateFile(self.path, maxBytes=MAX_BYTES, backupCount=KEPT_FILES, encoding="utf-8")
        self._logger.addHandler(self._handler)

    def write(self, event: str, facts: Mapping[str, object] | None = None) -> None:
        """One event with its facts."""
        line = {"time": round(time.time(), 3), "event": event, **self._always, **(facts or {})}
        self._logger.info("%s", json.dumps(line, ensure_ascii=True, default=str))
        if self._terminal is not None:
            said = " ".join(f"{name}={_plain(value)}" for name, value in (facts or {}).items())
            with suppress(OSError):
                print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {event} {said}".rstrip(), file=self._terminal, flush=True)

    def close(self) -> None:
        """Close the file."""
        self._handler.close()


def _plain(value: object) -> str:
    """Printable characters only: what came from outside must not steer a terminal."""
    return "".join(letter if letter.isprintable() else " " for letter in str(value))


class _PrivateFile(RotatingFileHandler):
    """Files of mode 0600; what cannot be written is said on the terminal and forgotten."""

    def _open(self) -> TextIO:  # type: ignore[override]
        return os.fdopen(os.open(self.baseFilename, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding=self.encoding)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        print(f"daemon.log cannot be written ({error}): {record.getMessage()}", file=sys.stderr)
