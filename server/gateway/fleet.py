# SPDX-License-Identifier: Apache-2.0
"""`/v1/fleet/*`: a call is read, checked, passed on, and what it changes about who may ask for what is noted before the answer goes out."""

from __future__ import annotations

from asyncio import Semaphore
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

from common.errors import ProtocolError
from common.flower_compat.fleet_records import (
    MEDIA_TYPE,
    NO_MESSAGES,
    NODE_KEY_HEADER,
    SIGNATURE_HEADERS,
    VERSION_HEADERS,
    Confirmation,
    Delivery,
    FleetCall,
    ObjectCall,
    ObjectPush,
    ReplyPush,
    RunCall,
    read_call,
    read_deliveries,
    read_opening,
    read_session,
    read_stored,
    stored_answer,
)
from server.gateway.answers import Sender
from server.gateway.checks import Asked, Books, check, decoded_node_key, may_be_delivered
from server.gateway.denied import Code, Denied
from server.gateway.objects import Arrived, LargeObjects
from server.gateway.pool import Answer, Headers
from server.gateway.redelivery import Redelivery
from server.gateway.request import Request
from server.gateway.superlink import SuperLink, headers_back, whole

if TYPE_CHECKING:
    from server.sites import RegisteredSite

PULL_MESSAGES: Final = "pull-messages"
PULL_OBJECT: Final = "pull-object"
PUSH_OBJECT: Final = "push-object"
Read = TypeVar("Read")


@dataclass(frozen=True)
class _Caller:
    """Who calls: the site, the node's key that it names, and those of its headers that go on."""

    site: RegisteredSite
    node_key: bytes
    headers: Headers

    @classmethod
    def of(cls, site: RegisteredSite, request: Request) -> _Caller:
        """Raises Denied for headers that are not as they should be."""
        headers = request.chosen_headers((*SIGNATURE_HEADERS, *VERSION_HEADERS))
        return cls(site, decoded_node_key(request.header(NODE_KEY_HEADER)), headers)


class FleetCalls:
    """Serves the Fleet calls of sites from one SuperLink."""

    def __init__(self, superlink: SuperLink, books: Books, objects: LargeObjects, redelivery: Redelivery) -> None:
        self._superlink, self._books, self._objects, self._redelivery = superlink, books, objects, redelivery
        self._large: defaultdict[str, Semaphore] = defaultdict(lambda: Semaphore(books.limits.large_at_once))

    async def serve(self, name: str, site: RegisteredSite, request: Request, answer: Sender) -> None:
        """One call `name` of `site`; of large ones only so many at a time. Raises Denied, StorageError, ClientGone."""
        limits = self._books.limits
        limit_bytes = limits.object_bytes if name == PUSH_OBJECT else limits.fleet_bytes
        is_large = request.expected_bytes(limit_bytes) > limits.fleet_bytes
        caller = _Caller.of(site, request)
        if not is_large:
            await self._serve(name, caller, request, await request.body(limit_bytes, limits.chunk_seconds), answer)
            return
        async with self._large[site.name]:
            kept = await self._received(caller, request, answer)
        if kept is not None:  # what is left to do for it takes no memory
            await self._pass_on(caller, *kept, answer)

    async def _received(self, caller: _Caller, request: Request, answer: Sender) -> tuple[ObjectPush, Arrived] | None:
        """An object, in its file; None when it is answered already.

        If its content comes last, the call is checked before it is read, and it is never whole in memory.
        """
        limits = self._books.limits
        parts = request.parts(limits.object_bytes, limits.chunk_seconds)
        beginning = await anext(parts)
        opening = _read(lambda: read_opening(beginning, request.expected_bytes(limits.object_bytes)))
        if opening is None:
            await self._serve(PUSH_OBJECT, caller, request, b"".join([beginning, *[part async for part in parts]]), answer)
            return None
        request.notes |= notes_of(opening.call)
        try:
            await check(Asked(caller.site, caller.node_key, opening.call), self._books)
        except Denied:
            async for _ in parts:  # who is still sending does not hear the answer
                pass
            raise
        arrived = await self._objects.receive(opening, beginning, parts)
        if arrived is not None:
            return opening.call, arrived
        request.notes["code"] = "NOT_ITS_DIGEST"
        await answer.whole(200, [(b"content-type", MEDIA_TYPE.encode())], stored_answer(False))
        return None

    async def _serve(self, name: str, caller: _Caller, request: Request, body: bytes, answer: Sender) -> None:
        site, headers = caller.site, caller.headers
        call = _read(lambda: read_call(name, body))
        request.notes |= notes_of(call)
        await check(Asked(site, caller.node_key, call), self._books)
        if name == PULL_OBJECT and isinstance(call, ObjectCall) and await self._objects.send(call.object_id, answer):
            return
        if name == PULL_MESSAGES:
            await self._pull(site, headers, body, request, answer)
            return
        if isinstance(call, ObjectPush):
            await self._pass_on(caller, call, await self._objects.keep(body), answer)
            return
        async with self._superlink.call(name, headers, body) as response:
            if isinstance(call, ReplyPush) and response.is_success:
                await self._open(site, call, response, answer)
            else:
                if response.is_success and isinstance(call, Confirmation):
                    await self._books.addressed.confirm(site.name, call.run_id, call.message_id)
                await answer.passed_on(response, headers_back(response))

    async def _pull(self, site: RegisteredSite, headers: Headers, body: bytes, request: Request, answer: Sender) -> None:
        """A message, if there is one. When there is none, one that was lost on its way before is given out again."""
        with self._redelivery.pull(site.name) as pull:
            response, content, deliveries = await self._messages(headers, body)
            if response.is_success and not deliveries and (count := await self._redelivery.found(site, pull)):
                request.notes["again"] = count
                response, content, deliveries = await self._messages(headers, body)
            if response.is_success:
                pull.given = await self._deliver(site, deliveries, request)
                content = content if pull.given else NO_MESSAGES
            await answer.whole(response.status, headers_back(response), content)

    async def _messages(self, headers: Headers, body: bytes) -> tuple[Answer, bytes, tuple[Delivery, ...]]:
        """The SuperLink's answer to a pull, whole, and the messages in it."""
        async with self._superlink.call(PULL_MESSAGES, headers, body) as response:
            content = await whole(response, self._books.limits.object_bytes)
        return response, content, _trusted(read_deliveries, content) if response.is_success else ()

    async def _deliver(self, site: RegisteredSite, deliveries: tuple[Delivery, ...], request: Request) -> tuple[Delivery, ...]:
        """What goes out: a message of a run that the site approved, which is noted before; otherwise nothing."""
        for one in deliveries:
            request.notes |= {"run": str(one.run_id), "message": one.message_id[:16]}
            if not await may_be_delivered(one, site, self._books):
                request.notes["code"] = Code.WITHHELD
                return ()
        for one in deliveries:
            await self._books.addressed.deliver(site.name, one.run_id, one.message_id, one.object_ids)
        if not deliveries:
            request.notes["routine"] = 1
        return deliveries

    async def _pass_on(self, caller: _Caller, call: ObjectPush, arrived: Arrived, answer: Sender) -> None:
        """An object of a reply. It counts against what the site may send, whether the SuperLink takes it or has it already."""
        is_taken = False
        try:
            async with self._superlink.call(PUSH_OBJECT, caller.headers, arrived.body) as response:
                content = await whole(response, self._books.limits.object_bytes)
            is_taken = response.is_success and _trusted(read_stored, content)
        finally:
            if not is_taken:
                self._objects.forget(arrived)
        if response.is_success:
            self._books.addressed.took_object(caller.site.name, call.session_id, call.size_bytes)
        await answer.whole(response.status, headers_back(response), content)

    async def _open(self, site: RegisteredSite, call: ReplyPush, response: Answer, answer: Sender) -> None:
        body = await whole(response, self._books.limits.object_bytes)
        session_id = _trusted(read_session, body)
        if session_id:
            await self._books.addressed.open(site.name, call.run_id, call.reply_to, session_id)
        self._books.addressed.took_reply(site.name, call.run_id, call.reply_to)
        await answer.whole(response.status, headers_back(response), body)


def notes_of(call: FleetCall) -> dict[str, str | int]:
    """What the access log says about a call: which run, which object; shortened, so that the log is no list of ids to ask for."""
    notes: dict[str, str | int] = {}
    if isinstance(call, RunCall):
        notes["run"] = str(call.run_id)
    if isinstance(call, ObjectCall):
        notes["object"] = call.object_id[:16]
    if isinstance(call, Confirmation | ReplyPush):
        notes["message"] = call.message_id[:16]
    return notes


def _read(read: Callable[[], Read]) -> Read:
    """What a site has sent. Raises Denied when it is not that call."""
    try:
        return read()
    except ProtocolError as error:
        raise Denied(400, Code.MALFORMED, f"{error}; the two ends may differ in version") from error


def _trusted(read: Callable[[bytes], Read], body: bytes) -> Read:
    """What the SuperLink has answered; when it cannot be read, nothing of it goes on."""
    try:
        return read(body)
    except ProtocolError as error:
        raise Denied(502, Code.SUPERLINK_DOWN, f"the SuperLink's answer does not fit ({error})") from error
