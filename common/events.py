# SPDX-License-Identifier: Apache-2.0
"""The event stream of a run: one JSON line for each thing that happened.

Terminal, `--json` and report read the same stream. An event is a name and plain facts; `EventLog` appends it to a file, flushed
line by line, and hands it to whoever listens.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from common.errors import StorageError
from common.files import cut_torn_line

Fact = str | int | float | bool | None | list[Any] | dict[str, Any]


@dataclass(frozen=True)
class Event:
    """`time` is seconds since the epoch."""

    name: str
    time: float
    facts: Mapping[str, Fact]


Listener = Callable[[Event], None]


class EventLog:
    """Append-only event file with listeners; safe to use from several threads."""

    def __init__(self, path: Path | None = None, listeners: tuple[Listener, ...] = ()) -> None:
        self._file: IO[str] | None = _open_to_append(path) if path else None
        self._listeners = listeners
        self._lock = threading.Lock()

    def emit(self, name: str, **facts: Fact) -> None:
        """Record one event. Raises StorageError when the file cannot be written."""
        event = Event(name, time.time(), facts)
        with self._lock:
            self._write(event)
            for listener in self._listeners:
                listener(event)

    def _write(self, event: Event) -> None:
        if self._file is None:
            return
        line = json.dumps({"event": event.name, "time": round(event.time, 3), **event.facts}, ensure_ascii=False)
        try:
            self._file.write(line + "\n")
            self._file.flush()
        except OSError as error:
            raise StorageError(f"cannot write the event log {self._file.name}: {error.strerror}; free some space and resume") from error

    def close(self) -> None:
        """Close the file; further events only reach the listeners. Raises StorageError."""
        file, self._file = self._file, None
        if file is None:
            return
        try:
            file.close()
        except OSError as error:
            raise StorageError(f"cannot write the event log {file.name}: {error.strerror}; free some space and resume") from error


def _open_to_append(path: Path) -> IO[str]:
    try:
        if path.is_file():
            cut_torn_line(path)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot open the event log {path}: {error.strerror}; check the folder and its permissions") from error


def read_events(path: Path) -> Iterator[Event]:
    """Events of a file in order; a last line that was cut by a crash is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                return
            yield parse_event(line)


def parse_event(line: str) -> Event:
    """One line of an event file."""
    facts = json.loads(line)
    return Event(facts.pop("event"), facts.pop("time"), facts)
