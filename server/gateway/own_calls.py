# SPDX-License-Identifier: Apache-2.0
"""`/v1/wardround/*`: what sites ask of the coordinator itself. Here is who may call what; the functions behind it are the other modules'.

POST enrol       anybody with an invitation      server.enrolment
POST renew       an approved site                server.enrolment
GET  studies     an approved site                server.offers
POST approvals   an approved site                server.offers
GET  receipts    an approved site, ?after=N      server.egress_receipts
GET  time        an approved site
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from common.errors import InputError, ProtocolError, RefusedError
from server.gateway.denied import Code, Denied
from server.gateway.limits import Limits
from server.gateway.request import Request
from server.home import ServerHome

if TYPE_CHECKING:
    from server.sites import RegisteredSite

OWN: Final = "/v1/wardround/"
ENROL: Final = "enrol"
METHODS: Final = {ENROL: "POST", "renew": "POST", "studies": "GET", "approvals": "POST", "receipts": "GET", "time": "GET"}
CONFLICTS: Final = frozenset({"INVITATION_USED", "KEYS_IN_USE", "REQUEST_CHANGED"})
_AFTER: Final = re.compile(rb"after=([0-9]{1,18})")


class OwnCalls:
    """Serves the coordinator's own calls for the folder `home`."""

    def __init__(self, home: ServerHome, limits: Limits) -> None:
        self._home, self._limits = home, limits

    async def enrol(self, request: Request) -> dict[str, Any]:
        """A request to join. Raises Denied, StorageError, ClientGone."""
        from server.enrolment import enrol

        _no_query(request)
        body = await request.body(self._limits.enrol_bytes, self._limits.enrol_seconds, self._limits.enrol_seconds)
        return await _answered(lambda: enrol(self._home, body))

    async def serve(self, name: str, site: RegisteredSite, request: Request) -> dict[str, Any]:
        """A call of a site that is let in. Raises Denied, StorageError, ClientGone."""
        if name == "receipts":
            return await self._receipts(site, _after(request.query))
        _no_query(request)
        if name == "time":
            return {"time": time.time()}
        if name == "studies":
            return await self._studies(site)
        body = await request.body(self._limits.own_bytes, self._limits.chunk_seconds)
        return await (self._renew(site, body) if name == "renew" else self._approval(site, body))

    async def _renew(self, site: RegisteredSite, body: bytes) -> dict[str, Any]:
        from server.enrolment import renew

        return await _answered(lambda: renew(self._home, site, body))

    async def _approval(self, site: RegisteredSite, body: bytes) -> dict[str, Any]:
        from server.offers import record_approval

        return await _answered(lambda: record_approval(self._home, site, body))

    async def _studies(self, site: RegisteredSite) -> dict[str, Any]:
        from server.offers import studies

        return await _answered(lambda: studies(self._home, site))

    async def _receipts(self, site: RegisteredSite, after: int) -> dict[str, Any]:
        from server.egress_receipts import receipts

        return await _answered(lambda: receipts(self._home, site, after))


async def _answered(ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `ask` returns, asked in a thread; its refusals become answers."""
    try:
        return await asyncio.to_thread(ask)
    except RefusedError as error:
        raise Denied(409 if error.code in CONFLICTS else 403, error.code, str(error).removeprefix(f"{error.code}: ")) from error
    except (InputError, ProtocolError) as error:
        raise Denied(400, Code.MALFORMED, str(error)) from error


def _no_query(request: Request) -> None:
    if request.query:
        raise Denied(400, Code.BAD_QUERY, "this call takes no query")


def _after(query: bytes) -> int:
    match = _AFTER.fullmatch(query) if query else None
    if query and match is None:
        raise Denied(400, Code.BAD_QUERY, "receipts takes ?after=N, a number, and nothing else")
    return int(match[1]) if match else 0
