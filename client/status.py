# SPDX-License-Identifier: Apache-2.0
"""`daemon.json`: what the daemon does, for `wardround-client status` and for the next start.

One process writes it (it holds `daemon.lock`), from several threads; everyone else reads. Each change is in the file before the call
returns, so a process that is killed leaves what it was about; it is not synced to the disk, and where it cannot be written (disk full) the
daemon goes on without. Nothing about patients and no path of data is in it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.site_home import SiteHome
from common.errors import InputError, StorageError


class Stage(StrEnum):
    """Where a daemon is."""

    STARTING = "starting"
    WAITING = "waiting for the coordinator's approval"
    CONNECTING = "connecting"
    IDLE = "idle"
    WORKING = "working"
    UNREACHABLE = "coordinator unreachable"
    NOT_WELCOME = "not accepted by the coordinator"
    BLOCKED = "blocked by a problem on this machine"
    STOPPED = "stopped"


class DaemonState(BaseModel):
    """`daemon.json`. Times are seconds since the epoch; `since` is when this stage began.

    `in_hand` is the header of the message that is being worked on (hexadecimal), `node_id` Flower's number of this site.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Stage = Stage.STARTING
    since: float = 0.0
    pid: int = 0
    host: str = ""
    version: str = ""
    node_id: int | None = None
    study_id: str | None = None
    run_id: str | None = None
    round: int | None = None
    in_hand: str | None = Field(None, max_length=1 << 20)
    rounds_answered: int = 0
    last_error: str | None = None
    last_error_at: float | None = None

    @classmethod
    def read(cls, home: SiteHome) -> DaemonState | None:
        """What was written last; None if nothing was. Raises StorageError for a damaged file."""
        try:
            return cls.model_validate_json(home.daemon.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise StorageError(f"{home.daemon}: cannot be read ({type(error).__name__}); delete it, the daemon writes it") from error

    @property
    def has_crashed(self) -> bool:
        """Whether the daemon that wrote this, on this machine, ended without saying so."""
        return self.stage is not Stage.STOPPED and self.host == socket.gethostname()


class StatusBoard:
    """The daemon's own state, shared by its threads."""

    def __init__(self, home: SiteHome, version: str, clock: Callable[[], float] = time.time) -> None:
        self._home = home
        self._clock = clock
        self._lock = threading.Lock()
        self.heard_at = clock()
        """When the coordinator last answered, in seconds since the epoch; before it did, when this began. Not in the file."""
        earlier = _earlier(home)
        self.leftover = earlier if earlier is not None and earlier.has_crashed else None
        self._state = DaemonState(
            since=clock(),
            pid=os.getpid(),
            host=socket.gethostname(),
            version=version,
            node_id=self.leftover.node_id if self.leftover else None,
            in_hand=self.leftover.in_hand if self.leftover else None,
            study_id=self.leftover.study_id if self.leftover else None,
            run_id=self.leftover.run_id if self.leftover else None,
            round=self.leftover.round if self.leftover else None,
        )
        self._write()

    @property
    def state(self) -> DaemonState:
        """As it is now."""
        return self._state

    def heard(self) -> None:
        """Say that the coordinator has answered a call."""
        self.heard_at = self._clock()

    def reach(self, stage: Stage) -> None:
        """Say that a stage is reached; the same one again changes nothing."""
        if self._state.stage is not stage:
            self._change(stage=stage, since=self._clock())

    def online(self, node_id: int) -> None:
        """Say that the node is online."""
        if self._state.node_id != node_id:
            self._change(node_id=node_id)

    def take(self, header: bytes) -> None:
        """A message is taken in hand."""
        self._change(in_hand=header.hex(), stage=Stage.WORKING, since=self._clock(), study_id=None, run_id=None, round=None)

    def about(self, study_id: str, run_id: str, round_number: int) -> None:
        """What the message in hand is about."""
        self._change(study_id=study_id, run_id=run_id, round=round_number)

    def finish(self, answered: bool) -> None:
        """The message in hand is answered, or dropped."""
        self._change(in_hand=None, stage=Stage.IDLE, since=self._clock(), rounds_answered=self._state.rounds_answered + answered)

    def fail(self, text: str, stage: Stage | None = None, *, again: bool = False) -> bool:
        """Note a problem; returns whether it is another one than before, or the same `again` after it had gone away."""
        is_new = again or text != self._state.last_error or (stage is not None and stage is not self._state.stage)
        if is_new:
            staged = {} if stage is None or stage is self._state.stage else {"stage": stage, "since": self._clock()}
            self._change(last_error=text[:2000], last_error_at=self._clock(), **staged)
        return is_new

    def _change(self, **fields: Any) -> None:
        with self._lock:
            self._state = self._state.model_copy(update=fields)
            self._write()

    def _write(self) -> None:
        path = self._home.daemon
        temporary = path.with_name(f".{path.name}.part")
        with suppress(OSError):
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(self._state.model_dump_json(indent=1))
            temporary.replace(path)


def _earlier(home: SiteHome) -> DaemonState | None:
    """The state that an earlier daemon left; a damaged file is worth nothing."""
    try:
        return DaemonState.read(home)
    except StorageError:
        return None


def lock_path(home: SiteHome) -> Path:
    """Locked by the daemon as long as it lives."""
    return home.folder / "daemon.lock"


@contextmanager
def only_daemon(home: SiteHome) -> Iterator[None]:
    """Be the one daemon of this folder. Raises InputError when there is another; the lock ends with the process."""
    import fcntl

    try:
        handle = os.open(lock_path(home), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StorageError(f"{lock_path(home)}: cannot be opened ({error.strerror}); check the folder and its permissions") from error
    with os.fdopen(handle, "r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(
                f"{home.folder}: a daemon runs here already; `wardround-client status` shows it, stop that one first"
            ) from error
        yield


def is_running(home: SiteHome) -> bool:
    """Whether a daemon holds the lock of this folder."""
    import fcntl

    try:
        with lock_path(home).open("r+") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
