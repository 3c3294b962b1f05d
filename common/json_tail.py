# SPDX-License-Identifier: Apache-2.0
"""Reads a file of JSON lines as it grows, and goes over to the next one when it is rotated."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class JsonTail:
    """The lines of `path` that are new since the last call; `from_the_end`: without those that are there at the first one.

    A rotated file is another file of the same name: it is read from its beginning. What was added to the old one between the last call
    and its rotation is not seen. A line that is being written waits; one that is no JSON object is left out.
    """

    def __init__(self, path: Path, *, from_the_end: bool = False) -> None:
        self._path = path
        self._identity: int | None = None
        self._position = 0
        if from_the_end and path.exists():
            found = path.stat()
            self._identity, self._position = found.st_ino, found.st_size

    def news(self) -> Iterator[dict[str, Any]]:
        """The new lines. Raises OSError."""
        try:
            with self._path.open("rb") as file:
                self._find_place(file.fileno())
                file.seek(self._position)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self._position += len(line)
                    found = _object(line)
                    if found is not None:
                        yield found
        except FileNotFoundError:
            self._identity, self._position = None, 0

    def _find_place(self, handle: int) -> None:
        """From the beginning where this is another file than before, or was cut."""
        import os

        found = os.fstat(handle)
        if found.st_ino != self._identity or found.st_size < self._position:
            self._identity, self._position = found.st_ino, 0


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None
