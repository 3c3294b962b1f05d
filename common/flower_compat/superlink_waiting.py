# SPDX-License-Identifier: Apache-2.0
"""Questions for messages that wait a moment at the SuperLink, instead of being asked again and again.

Flower's ends poll: each question is a call that costs the SuperLink some 15 ms, and a message lies there until the next one. Here a
question whose last answer was empty is held until a message is complete, or for `HOLD_SECONDS`, and only then answered, by Flower as ever:
it is the same call, later. So whatever else makes an answer (a node that went away, a message that expired) is late by that at most.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

HOLD_SECONDS: Final = 0.5
MOST_HELD: Final = 32
"""Each holds a connection of the gateway's; further questions are answered at once."""
MOST_KNOWN: Final = 10_000
EMPTY_BYTES: Final = 64
"""An answer with a message is longer."""
SITES: Final = "/v1/fleet/pull-messages"
RUNS: Final = "/v1/runtime/pull-messages"
WHO: Final = {SITES: b"flwr-public-key", RUNS: b"authorization"}
"""The questions, and the header that tells who asks."""


class Bell:
    """Rung from any thread whenever there may be something to pull; waited for in one event loop."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: set[asyncio.Event] = set()

    def ring(self) -> None:
        """Wake all who wait, and those who are about to."""
        with self._lock:
            self.count += 1
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._wake)

    async def heard(self, count: int) -> None:
        """Return when it was rung more often than `count` times."""
        self._loop = asyncio.get_running_loop()
        event = asyncio.Event()
        self._waiting.add(event)
        try:
            while self.count == count:
                event.clear()
                await event.wait()
        finally:
            self._waiting.discard(event)

    def _wake(self) -> None:
        for event in self._waiting:
            event.set()


@dataclass(frozen=True)
class Bells:
    """One for those who wait for messages to sites, one for those who wait for replies."""

    sites: Bell = field(default_factory=Bell)
    runs: Bell = field(default_factory=Bell)


class Waiting:
    """ASGI layer that holds the questions of `WHO`. It has to be within one that reads the body whole."""

    def __init__(self, app: ASGIApp, bells: Bells) -> None:
        self._app = app
        self._bells: Final = {SITES: bells.sites, RUNS: bells.runs}
        self._empty: dict[bytes, int] = {}
        self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        header = WHO.get(scope["path"]) if scope["type"] == "http" else None
        if header is None:
            await self._app(scope, receive, send)
            return
        who = scope["path"].encode() + next((value for name, value in scope["headers"] if name == header), b"")
        body = await receive()
        bell = self._bells[scope["path"]]
        if not await self._is_time(bell, self._empty.pop(who, None), receive):
            return
        before, length = bell.count, _Length(send)
        await self._app(scope, _then(body, receive), length)
        if length.bytes <= EMPTY_BYTES:
            if len(self._empty) >= MOST_KNOWN:  # each run's server asks under a name of its own, and then never again
                self._empty.clear()
            self._empty[who] = before

    async def _is_time(self, bell: Bell, count: int | None, receive: Receive) -> bool:
        """Wait as long as there is nothing new; False when the caller has gone, and must be given no message."""
        if count is None or self._held >= MOST_HELD:
            return True
        self._held += 1
        heard, gone = asyncio.ensure_future(bell.heard(count)), asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait((heard, gone), timeout=HOLD_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            return not gone.done()
        finally:
            self._held -= 1
            heard.cancel()
            gone.cancel()


class _Length:
    """Sends, and counts the bytes of the body."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.bytes = 0

    async def __call__(self, message: Message) -> None:
        self.bytes += len(message.get("body", b""))
        await self._send(message)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _then(first: Message, receive: Receive) -> Receive:
    """What was read already, and then what comes."""
    waiting = [first]

    async def next_event() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_event
