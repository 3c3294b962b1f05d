# SPDX-License-Identifier: Apache-2.0
"""Logs as JSON lines: `time` (seconds since the epoch), `level`, `message`, and `run`, `round`, `site` and a few more facts where known.

A fact comes with the message (`extra={"run": …}`), from the file that is written (`JsonLines(site=…)`), or, for run and round, from the
last message that had one. What other people's code prints is wrapped line by line, so that a whole file can be read by one program. Text
keeps its line breaks as `\\n` inside its string: one message is one line, whatever is in it.
"""

from __future__ import annotations

import io
import json
import logging
import re
import threading
import time
from collections.abc import Callable
from typing import Final, TextIO

from common.events import Event, Listener

RUN_LOG: Final = "wardround.run"
FACTS: Final = ("event", "run", "round", "site", "code", "reason", "child", "flower_run", "study", "seconds")
REMEMBERED: Final = ("run", "round")
MAX_LINE_CHARACTERS: Final = 1 << 16
LEVEL_WITHIN: Final = 40
"""Other people's lines name their level near the beginning, behind a time perhaps."""
_LEVEL: Final = re.compile(r"\b(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b")
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")


class JsonLines(logging.Formatter):
    """One JSON object for each record. `facts` stand in every line that does not say otherwise."""

    def __init__(self, **facts: str) -> None:
        super().__init__()
        self._facts = facts

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        known = {name: value for name in FACTS if (value := getattr(record, name, None)) is not None}
        line = {"time": round(record.created, 3), "level": record.levelname.lower(), "message": plain(record.getMessage())}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps({**line, **self._facts, **known}, default=str)


class Remembering(logging.Filter):
    """Lets everything pass; a message that does not say its run and round gets those of the last one that did."""

    def __init__(self) -> None:
        super().__init__()
        self._last: dict[str, object] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Fill in what is known."""
        for name in REMEMBERED:
            if hasattr(record, name):
                self._last[name] = getattr(record, name)
            elif name in self._last:
                setattr(record, name, self._last[name])
        return True


class JsonStream(io.TextIOBase):
    """A stream for what others print: each line becomes a JSON line of `stream`, one that is a JSON object already stays as it is."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.time, **facts: str) -> None:
        self._stream, self._clock, self._facts = stream, clock, facts
        self._rest, self._lock = "", threading.Lock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of the stream behind it."""
        return self._stream.encoding

    def write(self, text: str) -> int:
        """Write the lines that are whole now, and what is too long to wait for."""
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
            if len(self._rest) > MAX_LINE_CHARACTERS:
                lines, self._rest = [*lines, self._rest], ""
            for line in lines:
                if line.strip():
                    self._stream.write(as_json_line(line, self._clock(), **self._facts) + "\n")
        return len(text)

    def flush(self) -> None:
        """Hand on what is written; half a line waits for its end."""
        self._stream.flush()

    def fileno(self) -> int:
        """That of the stream behind it: what libraries write there directly is not wrapped."""
        return self._stream.fileno()

    def isatty(self) -> bool:
        """No terminal, so nobody sends colours."""
        return False

    def writable(self) -> bool:
        """It can be written."""
        return True


def as_json_line(line: str, now: float, **facts: str) -> str:
    """`line` as a JSON line: as it is if it is one, with `facts` where it does not say them; else as the message of a new one."""
    try:
        found = json.loads(line) if line.startswith("{") else None
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict):
        return json.dumps({**facts, **found}) if facts.keys() - found.keys() else line
    text = plain(line)
    said = _LEVEL.search(text, 0, LEVEL_WITHIN)
    return json.dumps({"time": round(now, 3), "level": said[0].lower() if said else "info", "message": text, **facts})


def plain(text: str) -> str:
    """Without the colours that some libraries send to a terminal."""
    return _COLOURS.sub("", text).strip()


def tell_events(run_id: str) -> Listener:
    """Says each event of a run in the log `wardround.run`, with its run, round and site."""
    log = logging.getLogger(RUN_LOG)

    def tell(event: Event) -> None:
        facts = {"event": event.name, "run": run_id, **{name: event.facts.get(name) for name in FACTS if name in event.facts}}
        log.info("%s", event.name.replace("_", " "), extra=facts)

    return tell


def json_handler(stream: TextIO, **facts: str) -> logging.Handler:
    """A handler that writes JSON lines to `stream` and remembers run and round."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(**facts))
    handler.addFilter(Remembering())
    return handler
