# SPDX-License-Identifier: Apache-2.0
"""Where a run stands, told by its own events: has it ended, and how; if not, how often was it taken up again without getting further.

The server of a run writes `run_started` before its first message and `run_ended` at every end that is its own decision; one that was
killed, or lost the SuperLink, writes no end. So a run whose last word is not `run_ended` was interrupted, unless its server runs.
Whoever starts a run once more writes `run_resumed` first, whoever stops one `run_ended`.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import RefusedError, StorageError, WardroundError
from common.events import Event, EventLog, Fact, parse_event
from server.home import ServerHome

RUN_STARTED, RUN_ENDED, RUN_RESUMED = "run_started", "run_ended", "run_resumed"
FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"
EVENTS_FILE = "events.jsonl"
RUN_LOCK = ".run.lock"
APP_FAILED = "ServerApp failed with exception"
LOCK_POLL_SECONDS = 0.1
MOST_TRIES = 3
"""Automatic resumptions without a finished round in between; after that somebody has to look."""


@dataclass(frozen=True)
class Story:
    """`how` a run ended and the `reason`, None while it has not; `tries` counts automatic resumptions since the last finished round.

    `is_told` is False before the first event that says, and for what a release left that wrote no `run_started`.
    """

    is_told: bool = False
    is_empty: bool = True
    how: str | None = None
    reason: str = ""
    tries: int = 0

    @property
    def is_open(self) -> bool:
        """Whether the run was begun and has not ended: if no server works on it, it was interrupted."""
        return (self.is_told or self.is_empty) and self.how is None

    def never_came_to_work(self, details: str) -> bool:
        """Whether the server refused the run before its first event, which is a decision; `details` are Flower's of the run's end."""
        return self.is_empty and details.startswith(APP_FAILED)

    def after(self, event: Event) -> Story:
        """The story with one event more."""
        here = replace(self, is_empty=False)
        if event.name == RUN_STARTED:
            return replace(here, is_told=True, how=None, reason="")
        if event.name == RUN_RESUMED:
            is_automatic = bool(event.facts.get("automatic"))
            return replace(here, is_told=True, how=None, reason="", tries=self.tries + 1 if is_automatic else 0)
        if event.name == RUN_ENDED:
            return replace(here, is_told=True, how=str(event.facts.get("how")), reason=str(event.facts.get("reason") or ""))
        if event.name == "rounds_finished":
            return replace(here, is_told=True, how=FINISHED)
        return replace(here, tries=0) if event.name == "round_done" else here


class EventTail:
    """Reads an event file as it grows, from `position` (bytes) on."""

    def __init__(self, path: Path, position: int = 0) -> None:
        self._path, self._position = path, position

    @property
    def has_news(self) -> bool:
        """Whether the file is longer than what was read."""
        return self._path.exists() and self._path.stat().st_size > self._position

    def news(self) -> Iterator[Event]:
        """The events that are new since the last call; a line that is being written waits. Raises StorageError."""
        if not self._path.exists():
            return
        try:
            with self._path.open("rb") as file:
                file.seek(self._position)
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    self._position += len(line)
                    yield parse_event(line.decode())
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError) as error:
            raise StorageError(f"{self._path}: the line before byte {self._position} is damaged; remove it") from error


class Stories:
    """The stories of all runs of a coordinator; what was read once is not read again."""

    def __init__(self, home: ServerHome) -> None:
        self._home = home
        self._tails: dict[str, EventTail] = {}
        self._stories: dict[str, Story] = {}

    def of(self, run_id: str) -> Story:
        """The story of one run as it is now. Raises StorageError."""
        tail = self._tails.setdefault(run_id, EventTail(events_of(self._home, run_id)))
        if tail.has_news:
            self._stories[run_id] = told(tail.news(), self._stories.get(run_id, Story()))
        return self._stories.get(run_id, Story())


def told(events: Iterable[Event], before: Story | None = None) -> Story:
    """The story of these events."""
    story = before or Story()
    for event in events:
        story = story.after(event)
    return story


def events_of(home: ServerHome, run_id: str) -> Path:
    """The event file of a run."""
    return home.run(run_id) / EVENTS_FILE


@contextmanager
def its_end_told(events: EventLog) -> Iterator[None]:
    """The work of a run's server: its end is told if that is a decision. A process that is killed, or loses the SuperLink, tells none.

    Nor does one whose disk is full: the run then goes on by itself once there is space. What is raised is what went wrong first.
    """
    try:
        yield
    except WardroundError as error:
        with suppress(StorageError):
            events.emit(RUN_ENDED, how=FAILED, reason=str(error))
        raise
    events.emit(RUN_ENDED, how=FINISHED, reason="")


def end_of(path: Path) -> int:
    """Where the whole lines of an event file end, in bytes."""
    return path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0


def note(home: ServerHome, run_id: str, name: str, *, wait_seconds: float = 0.0, **facts: Fact) -> None:
    """Add an event to those of a run that no server works on, waiting so long for one that is just ending. A run ends once.

    Raises RefusedError RUN_ACTIVE when there is one, StorageError.
    """
    folder = home.run(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + wait_seconds
    with (folder / RUN_LOCK).open("a") as lock:
        while not _is_free(lock.fileno()):
            if time.monotonic() >= deadline:
                raise RefusedError("RUN_ACTIVE", f"run {run_id[:8]} is still running; stop it first")
            time.sleep(LOCK_POLL_SECONDS)
        if name == RUN_ENDED and not told(EventTail(folder / EVENTS_FILE).news()).is_open:
            return
        with closing(EventLog(folder / EVENTS_FILE)) as events:
            events.emit(name, **facts)


def _is_free(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
