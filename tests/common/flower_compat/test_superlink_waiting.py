# SPDX-License-Identifier: Apache-2.0
"""A question waits for a message, never past it: nothing new holds it, a message lets it go at once, and a caller that went gets none."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flwr.app import RecordDict
from flwr.app.message import Message

from common.flower_compat import superlink_waiting
from common.flower_compat.fleet import FleetConnection, answer_to
from common.flower_compat.superlink_waiting import HOLD_SECONDS, MOST_HELD, Bells, Waiting
from tests.common.flower_compat.loopback_link import LoopbackLink, new_node_key
from tests.common.flower_compat.server_side import ServerEnd

FLEET, KEY = "/v1/fleet/pull-messages", b"flwr-public-key"
RUNTIME, TOKEN = "/v1/runtime/pull-messages", b"authorization"
EMPTY, FULL = b"", b"x" * 200


class Link:
    """An application behind the layer, whose answers a test sets; `asked` has who came through."""

    def __init__(self) -> None:
        self.bells = Bells()
        self.answer = EMPTY
        self.asked: list[bytes] = []
        self.layer = Waiting(self._app, self.bells)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["body"] == b"question"
        self.asked.append(scope["headers"][0][1])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self.answer})

    async def ask(self, who: bytes = b"one", path: str = FLEET, gone: asyncio.Event | None = None) -> float:
        """Seconds until the call is over."""
        first = [{"type": "http.request", "body": b"question", "more_body": False}]

        async def receive() -> Any:
            if first:
                return first.pop()
            await (gone or asyncio.Event()).wait()
            return {"type": "http.disconnect"}

        async def send(_: Any) -> None:
            return None

        scope: Any = {"type": "http", "path": path, "headers": [(TOKEN if path == RUNTIME else KEY, who)]}
        started = time.monotonic()
        await self.layer(scope, receive, send)
        return time.monotonic() - started


@pytest.fixture
def questions() -> Link:
    return Link()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is let go because of the time."""
    monkeypatch.setattr(superlink_waiting, "HOLD_SECONDS", 60.0)


def later(action: Callable[[], None]) -> threading.Thread:
    """Do it in another thread, when questions are on hold."""
    thread = threading.Timer(0.05, action)
    thread.start()
    return thread


def test_the_first_question_is_answered_at_once_and_the_next_waits(questions: Link) -> None:
    async def scene() -> tuple[float, float, float]:
        return await questions.ask(), await questions.ask(), await questions.ask(b"other")

    first, second, others = asyncio.run(scene())
    assert first < HOLD_SECONDS / 2 and others < HOLD_SECONDS / 2
    assert second >= HOLD_SECONDS
    assert questions.asked == [b"one", b"one", b"other"]


def test_the_bell_lets_all_go(questions: Link, patient: None) -> None:
    async def scene() -> None:
        await asyncio.gather(questions.ask(b"one"), questions.ask(b"two"))
        later(questions.bells.sites.ring)
        await asyncio.gather(questions.ask(b"one"), questions.ask(b"two"))

    asyncio.run(asyncio.wait_for(scene(), 20))
    assert sorted(questions.asked) == [b"one", b"one", b"two", b"two"]


def test_a_reply_wakes_no_site(questions: Link, patient: None) -> None:
    """Nor a message to a site the run's server: each would ask in vain, and cost the SuperLink a call."""

    async def scene() -> None:
        await asyncio.gather(questions.ask(b"site"), questions.ask(b"run", RUNTIME))
        site, run = (asyncio.ensure_future(one) for one in (questions.ask(b"site"), questions.ask(b"run", RUNTIME)))
        later(questions.bells.runs.ring)
        await run
        assert not site.done()
        later(questions.bells.sites.ring)
        await site

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_what_rang_while_nobody_waited_is_not_missed(questions: Link, patient: None) -> None:
    async def scene() -> None:
        await questions.ask()
        questions.bells.sites.ring()
        await questions.ask()

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_after_a_message_there_may_be_another(questions: Link, patient: None) -> None:
    questions.answer = FULL

    async def scene() -> None:
        for _ in range(5):
            await questions.ask()

    asyncio.run(asyncio.wait_for(scene(), 20))
    assert len(questions.asked) == 5


def test_a_caller_that_went_gets_no_message(questions: Link, patient: None) -> None:
    async def scene() -> None:
        await questions.ask()
        gone = asyncio.Event()
        asyncio.get_running_loop().call_later(0.05, gone.set)
        await questions.ask(gone=gone)

    asyncio.run(asyncio.wait_for(scene(), 20))
    assert len(questions.asked) == 1


def test_only_so_many_wait(questions: Link, patient: None) -> None:
    async def scene() -> None:
        names = [b"%d" % number for number in range(MOST_HELD + 3)]
        await asyncio.gather(*(questions.ask(name) for name in names))
        waiting = [asyncio.ensure_future(questions.ask(name)) for name in names]
        done, _ = await asyncio.wait(waiting, timeout=1.0)
        assert len(done) == 3
        questions.bells.sites.ring()
        await asyncio.gather(*waiting)

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_whoever_asked_once_and_never_again_does_not_fill_the_books(questions: Link, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(superlink_waiting, "MOST_KNOWN", 3)

    async def scene() -> float:
        for number in range(7):
            await questions.ask(b"%d" % number)
        await questions.ask(b"new")
        return await questions.ask(b"new")

    assert asyncio.run(scene()) >= HOLD_SECONDS


def test_other_calls_do_not_wait(questions: Link, patient: None) -> None:
    async def scene() -> None:
        for _ in range(3):
            await questions.ask(path="/v1/fleet/pull-object")

    asyncio.run(asyncio.wait_for(scene(), 20))


def test_the_real_one_gives_a_message_out_when_it_is_complete(link_with_site: tuple[ServerEnd, FleetConnection, int]) -> None:
    """On a real SuperLink: a site's question waits while there is nothing, and ends with the message."""
    server, site, number = link_with_site
    assert site.pull() is None
    started = time.monotonic()
    assert site.pull() is None
    assert time.monotonic() - started >= HOLD_SECONDS * 0.9
    sender = later(lambda: server.send(RecordDict(), number))
    end = time.monotonic() + 20
    while (pulled := site.pull()) is None:
        assert time.monotonic() < end, "no message"
    sender.join()
    message = site.fetch(pulled, lambda: False)
    assert isinstance(message, Message)
    site.confirm(pulled)
    site.push(answer_to(pulled, RecordDict(), 0.0))


@pytest.fixture
def link_with_site(link: LoopbackLink) -> Iterator[tuple[ServerEnd, FleetConnection, int]]:
    key = new_node_key()
    number = link.register(key, "waits")
    site = FleetConnection(link.url, link.tls(), key)
    site.activate()
    with link.run({"study": "{}"}) as server:
        yield server, site, number
    site.deactivate()
    site.close()
