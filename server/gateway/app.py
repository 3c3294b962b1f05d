# SPDX-License-Identifier: Apache-2.0
"""The gateway as an ASGI application: nine Fleet calls, six of our own, `/health`, and nothing else.

    POST /v1/fleet/<call>        an approved site, by certificate and node key; passed on to the SuperLink when every check lets it pass
    POST /v1/wardround/enrol     anybody, few at a time
    *    /v1/wardround/<call>    an approved site, by certificate
    GET  /health                 anybody; says only whether the SuperLink answers

Everything that is refused is answered with `{"code", "message"}`. The order: certificate, rate, path and method, headers, body, checks.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from common.errors import StorageError
from common.flower_compat.fleet_records import CALLS, FLEET
from server.gateway.access_log import AccessLog, printable_path
from server.gateway.answers import Sender
from server.gateway.denied import ClientGone, Code, Denied
from server.gateway.doorman import ENROLLING, Doorman
from server.gateway.fleet import FleetCalls
from server.gateway.own_calls import ENROL, METHODS, OWN, OwnCalls
from server.gateway.request import Request
from server.gateway.superlink import SuperLink

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, Scope

HEALTH: Final = b"/health"
HEALTH_SECONDS: Final = 1.0
ROUTINE: Final = "send-node-heartbeat"


@dataclass(frozen=True)
class Call:
    """One row of the table of calls: where, how, and which part serves it."""

    path: bytes
    method: str
    name: str
    fleet: bool


TABLE: Final = {
    call.path: call
    for call in (
        *(Call((FLEET + name).encode(), "POST", name, True) for name in CALLS),
        *(Call((OWN + name).encode(), method, name, False) for name, method in METHODS.items()),
    )
}


class Gateway:
    """The application; made of its parts so that each can be read alone."""

    def __init__(self, doorman: Doorman, fleet: FleetCalls, own: OwnCalls, superlink: SuperLink, log: AccessLog) -> None:
        self._doorman, self._fleet, self._own, self._superlink, self._log = doorman, fleet, own, superlink, log
        self._faults = logging.getLogger("uvicorn.error")
        self._health = (False, -HEALTH_SECONDS)

    async def __call__(self, scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        request, answer, started = Request.of(scope, receive), Sender(send), time.perf_counter()
        try:
            await self._answer(request, answer)
        finally:
            self._note(request, answer, time.perf_counter() - started)

    async def _answer(self, request: Request, answer: Sender) -> None:
        try:
            await self._serve(request, answer)
        except Denied as denied:
            request.notes["code"] = str(denied.code)
            if answer.status:  # the answer has begun; what is missing shows the site that it is broken off
                self._faults.warning("an answer was broken off: %s", denied)
            else:
                await answer.refusal(denied)
        except StorageError as error:
            request.notes["code"] = Code.STORAGE
            self._faults.error("%s", error)
            await answer.refusal(Denied(503, Code.STORAGE, "the coordinator cannot read or write its database; tell the coordinator"))
        except ClientGone:
            request.notes["code"] = "CLIENT_GONE"

    async def _serve(self, request: Request, answer: Sender) -> None:
        if request.path == HEALTH:
            await self._say_health(request, answer)
            return
        call = TABLE.get(request.path)
        if call is not None and call.name == ENROL and request.method == call.method:
            self._doorman.newcomer(request)
            with self._doorman.inside(ENROLLING):
                await answer.json(200, await self._own.enrol(request))
            return
        site = await self._doorman.site(request)
        request.notes["site"] = site.name
        call = _known(call, request)
        with self._doorman.inside(site.name):
            if call.fleet:
                request.notes |= {"routine": 1} if call.name == ROUTINE else {}
                await self._fleet.serve(call.name, site, request, answer)
            else:
                await answer.json(200, await self._own.serve(call.name, site, request))

    async def _say_health(self, request: Request, answer: Sender) -> None:
        """Asks the SuperLink at most once a second, whoever asks us."""
        request.notes["routine"] = 1
        is_up, since = self._health
        if time.monotonic() - since > HEALTH_SECONDS:
            self._health = (is_up, time.monotonic())
            is_up = await self._superlink.is_up()
            self._health = (is_up, time.monotonic())
        await answer.json(200 if is_up else 503, {"gateway": "up", "superlink": "up" if is_up else "down"})

    def _note(self, request: Request, answer: Sender, seconds: float) -> None:
        if answer.status not in (0, 200):
            request.notes.pop("routine", None)
        self._log.write(
            {
                "address": request.address,
                "certificate": request.fingerprint[:16] if request.fingerprint else None,
                "method": request.method[:16],
                "path": printable_path(request.path),
                "status": answer.status,
                **request.notes,
                "bytes_in": request.received_bytes,
                "bytes_out": answer.sent_bytes,
                "seconds": round(seconds, 4),
            }
        )


def _known(call: Call | None, request: Request) -> Call:
    if call is None and request.path.startswith(b"/v1/"):
        raise Denied(403, Code.CALL_FORBIDDEN, "this call is not open to sites")
    if call is None:
        raise Denied(404, Code.NO_SUCH_CALL, "there is nothing here; sites use `wardround-client`")
    if request.method != call.method:
        raise Denied(405, Code.WRONG_METHOD, f"this call is made with {call.method}")
    if call.fleet and request.query:
        raise Denied(400, Code.BAD_QUERY, "this call takes no query")
    return call
