# SPDX-License-Identifier: Apache-2.0
"""The site's line to the coordinator, which comes back by itself: every call is tried again until it works.

    no answer                   again after 0.2 s, then ever longer, up to 15 s
    401, 403                    again every 30 s, with a new activation: somebody has to do something (`wardround-client check`)
    keys or certificate bad     the same
    renewal                     the next call goes over a new connection with the new certificate; the node stays the same

One thread calls; `renew` and `stop` are for others. After `stop` what is begun has a few seconds to end.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from flwr.app import Message

from client.daemon_log import DaemonLog
from client.status import Stage, StatusBoard
from common.errors import InputError, StorageError, WardroundError
from common.flower_compat.fleet import FleetConnection, NotWelcome, Outgoing, Pulled, RunFacts, StillOnline, Unreachable

Result = TypeVar("Result")
Explain = Callable[[WardroundError], str]
CHECK = "see `wardround-client check`"


class Stopped(WardroundError):
    """The daemon stops."""


class GaveUp(WardroundError):
    """The call did not work as long as somebody waited for it; `__cause__` is the last error."""


@dataclass(frozen=True)
class Timing:
    """Waits in seconds."""

    first: float = 0.2
    longest: float = 15.0
    not_welcome: float = 30.0
    stopping: float = 8.0
    after_reply: float = 3.0

    def waits(self) -> Iterator[float]:
        """Growing waits, spread so that sites do not come all at once."""
        wait = self.first
        while True:
            yield wait * random.uniform(0.8, 1.2)
            wait = min(wait * 2, self.longest)


class Link:
    """Calls over the connection that `connect` makes. `explain` says in words why a call failed."""

    def __init__(
        self,
        connect: Callable[[], FleetConnection],
        board: StatusBoard,
        log: DaemonLog,
        explain: Explain,
        timing: Timing,
    ) -> None:
        self._connect = connect
        self._board = board
        self._log = log
        self._explain = explain
        self._timing = timing
        self._connection: FleetConnection | None = None
        self._node_id = board.state.node_id
        self._renewing = threading.Event()
        self._stopping = threading.Event()
        self._end = float("inf")
        self._in_trouble = False
        self._run_facts: dict[int, RunFacts] = {}
        self._pushed_at = float("-inf")

    @property
    def is_stopping(self) -> bool:
        """Whether `stop` was called."""
        return self._stopping.is_set()

    def facts_of(self, flower_run_id: int, ask: Callable[[], RunFacts]) -> RunFacts:
        """What a run was started with; `ask` is called if it is not the run of the last message."""
        if flower_run_id not in self._run_facts:
            self._run_facts = {flower_run_id: ask()}
        return self._run_facts[flower_run_id]

    @property
    def node_id(self) -> int:
        """Flower's number of this site, once it was online."""
        return self._node_id or 0

    def renew(self) -> None:
        """Take up a new certificate before the next call."""
        self._renewing.set()

    def stop(self) -> None:
        """Let what is begun end soon. Said again it changes nothing."""
        if not self._stopping.is_set():
            self._end = time.monotonic() + self._timing.stopping
            self._stopping.set()

    def wait(self, seconds: float) -> None:
        """Wait, unless the daemon stops."""
        self._stopping.wait(seconds)

    def call(self, action: Callable[[FleetConnection], Result], until: float = float("inf"), *, finish: bool = False) -> Result:
        """The result of `action`, tried until it works or `until` (seconds since the epoch); `finish`: for some seconds also after `stop`.

        Raises GaveUp, Stopped, and whatever else `action` raises (RunOver, ProtocolError, Interrupted).
        """
        waits = self._timing.waits()
        while True:
            try:
                result = action(self._online())
            except Unreachable as error:
                self._failed(error, Stage.CONNECTING if isinstance(error, StillOnline) else Stage.UNREACHABLE)
                self._pause(next(waits), until, finish, error)
            except NotWelcome as error:
                self._drop()
                self._failed(error, Stage.NOT_WELCOME)
                self._pause(self._timing.not_welcome, until, finish, error)
            except (InputError, StorageError) as error:
                self._drop()
                self._failed(error, Stage.BLOCKED)
                self._pause(self._timing.not_welcome, until, finish, error)
            else:
                self._board.heard()
                if self._in_trouble:
                    self._in_trouble = False
                    self._log.write("connected again")
                return result

    def pushed(self) -> None:
        """A reply has left."""
        self._pushed_at = time.monotonic()

    def close(self) -> None:
        """Say that this node goes, if the link still hears it.

        Not in the first moments after a reply: the link does not hand out replies of a node that has gone.
        """
        if self._connection is not None:
            time.sleep(max(0.0, self._pushed_at + self._timing.after_reply - time.monotonic()))
            with suppress(WardroundError):
                self._connection.deactivate()
            self._drop()

    def _online(self) -> FleetConnection:
        """A connection whose node is online."""
        if self._renewing.is_set() and self._connection is not None:
            self._renewing.clear()
            self._drop()
            self._log.write("certificate renewed")
        if self._connection is None:
            self._connection = self._activated()
        elif self._connection.keep_heartbeat():
            self._log.write("heartbeat started again")
        return self._connection

    def _activated(self) -> FleetConnection:
        connection = self._connect()
        try:
            node_id = connection.activate(self._node_id)
        except WardroundError:
            connection.close()
            raise
        if (node_id, self._board.state.stage) != (self._node_id, Stage.IDLE):
            self._log.write("online", {"node": node_id})
        self._node_id = node_id
        self._board.online(node_id)
        return connection

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _failed(self, error: WardroundError, stage: Stage) -> None:
        is_first, self._in_trouble = not self._in_trouble, True
        text = self._explain(error)
        if self._board.fail(text, None if self._board.state.stage is Stage.WORKING else stage, again=is_first):
            self._log.write(stage.value, {"error": text})

    def _pause(self, seconds: float, until: float, finish: bool, error: WardroundError) -> None:
        """Wait before the next try. Raises GaveUp or Stopped when there is none."""
        if time.time() + seconds >= until:
            raise GaveUp("nobody waits for it any more") from error
        if not self._stopping.wait(seconds):
            return
        if not finish or time.monotonic() >= self._end:
            raise Stopped("the daemon stops") from error
        time.sleep(min(seconds, self._timing.first))


@dataclass(frozen=True)
class MessageCalls:
    """The calls about one message (`client.answering.Channel`), as long as somebody waits for its answer."""

    link: Link
    pulled: Pulled

    @property
    def node_id(self) -> int:
        """Flower's number of this site."""
        return self.link.node_id

    def run(self) -> RunFacts:
        """See `FleetConnection.run`; what a run was started with never changes, so it is asked for once."""
        number = self.pulled.flower_run_id
        return self.link.facts_of(
            number, lambda: self.link.call(lambda connection: connection.run(number), self.pulled.expires, finish=True)
        )

    def fetch(self) -> Message:
        """See `FleetConnection.fetch`."""
        return self.link.call(lambda connection: connection.fetch(self.pulled, lambda: self.link.is_stopping), self.pulled.expires)

    def confirm(self) -> None:
        """See `FleetConnection.confirm`."""
        self.link.call(lambda connection: connection.confirm(self.pulled), self.pulled.expires, finish=True)

    def push(self, outgoing: Outgoing) -> None:
        """See `FleetConnection.push`."""
        self.link.call(lambda connection: connection.push(outgoing), self.pulled.expires, finish=True)
        self.link.pushed()
