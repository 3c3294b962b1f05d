# SPDX-License-Identifier: Apache-2.0
"""Who is asking: the site behind a request's certificate, whether it may ask at all, and whether it asks too often.

Asked for every request, not for every connection: a kept-alive connection outlives a revocation and a certificate's end.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from server.gateway.denied import Code, Denied
from server.gateway.fresh import Fresh
from server.gateway.limits import Buckets, Limits, origin
from server.gateway.request import Request
from server.sites import SiteRegistry

if TYPE_CHECKING:
    from server.sites import RegisteredSite

ENROLLING: Final = " enrol"
"""Stands for everybody who asks to be enrolled; no site has a name that begins with a space."""
_NO_CERTIFICATE = (
    "this call needs the client certificate of an approved site; see `wardround-client check`, or enrol with an invitation first"
)


class Doorman:
    """Lets requests in, by certificate and by number. For one event loop; `clock` gives the time of day in seconds."""

    def __init__(self, registry: SiteRegistry, fresh: Fresh, limits: Limits, clock: Callable[[], float] = time.time) -> None:
        self._registry, self._fresh, self._limits, self._clock = registry, fresh, limits, clock
        self._sites, self._strangers, self._enrolling = Buckets(limits.site), Buckets(limits.stranger), Buckets(limits.enrol)
        self._inside: Counter[str] = Counter()

    async def site(self, request: Request) -> RegisteredSite:
        """The approved site whose certificate this is. Raises Denied: 401 for everybody else, 429 for who asks too often."""
        found = await self._welcome(request.fingerprint)
        if found is None:
            _take(self._strangers, origin(request.address))
            raise await self._unwelcome(request.fingerprint)
        _take(self._sites, found.name)
        return found

    def newcomer(self, request: Request) -> None:
        """Let somebody without a certificate ask to be enrolled. Raises Denied 429."""
        _take(self._enrolling, origin(request.address))

    @contextmanager
    def inside(self, who: str) -> Iterator[None]:
        """Count a request of a site (or `ENROLLING`) while it is served, body in memory. Raises Denied 429 for too many at once."""
        if self._inside[who] >= (self._limits.enrol_at_once if who == ENROLLING else self._limits.at_once):
            raise _too_many("too many requests at once; wait for answers before you ask again", 1.0)
        self._inside[who] += 1
        try:
            yield
        finally:
            self._inside[who] -= 1
            if not self._inside[who]:
                del self._inside[who]

    async def _welcome(self, fingerprint: str | None) -> RegisteredSite | None:
        if fingerprint is None:
            return None
        return await self._fresh.get(("site", fingerprint), lambda: self._registry.is_welcome(fingerprint, self._clock()))

    async def _unwelcome(self, fingerprint: str | None) -> Denied:
        if fingerprint is None:
            return Denied(401, Code.NO_CERTIFICATE, _NO_CERTIFICATE)
        why = await self._fresh.get(("why", fingerprint), lambda: self._registry.why_not(fingerprint, self._clock()))
        return Denied(401, Code.CERTIFICATE_REFUSED, why or "this certificate is not accepted; see `wardround-client check`")


def _take(buckets: Buckets, key: str) -> None:
    wait_seconds = buckets.take(key)
    if wait_seconds > 0:
        raise _too_many("too many requests; wait a moment and try again", wait_seconds)


def _too_many(message: str, wait_seconds: float) -> Denied:
    return Denied(429, Code.TOO_MANY_REQUESTS, message, retry_after_seconds=wait_seconds)
