# SPDX-License-Identifier: Apache-2.0
"""How answers are sent: whole, as JSON, or passed on from the SuperLink piece by piece."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.gateway.denied import Denied
from server.gateway.pool import Answer

if TYPE_CHECKING:
    from uvicorn._types import ASGISendCallable, ASGISendEvent

JSON: tuple[bytes, bytes] = (b"content-type", b"application/json")


@dataclass
class Sender:
    """Sends one answer and remembers what was sent, for the access log. `status` is 0 until something was."""

    send: ASGISendCallable
    status: int = 0
    sent_bytes: int = field(default=0)

    async def __call__(self, event: ASGISendEvent) -> None:
        """Send one event."""
        if event["type"] == "http.response.start":
            self.status = event["status"]
        elif event["type"] == "http.response.body":
            self.sent_bytes += len(event.get("body", b""))
        await self.send(event)

    async def whole(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """An answer that is in memory."""
        length = (b"content-length", str(len(body)).encode())
        await self.head(status, [*(pair for pair in headers if pair[0] != b"content-length"), length])
        await self({"type": "http.response.body", "body": body, "more_body": False})

    async def json(self, status: int, content: Mapping[str, object], headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """A JSON object."""
        await self.whole(status, [JSON, *headers], json.dumps(content).encode())

    async def head(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Status and headers."""
        await self({"type": "http.response.start", "status": status, "headers": [*headers, (b"cache-control", b"no-store")]})

    async def refusal(self, denied: Denied) -> None:
        """`{"code", "message"}`, with Retry-After if it is known."""
        wait = denied.retry_after_seconds
        headers = [] if wait is None else [(b"retry-after", str(math.ceil(wait)).encode())]
        await self.json(denied.status, {"code": str(denied.code), "message": denied.message}, headers)

    async def passed_on(self, response: Answer, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """The SuperLink's answer as it comes, never whole in memory; a slow reader slows the SuperLink down."""
        await self.head(response.status, headers)
        async for part in response.parts():
            await self({"type": "http.response.body", "body": part, "more_body": True})
        await self({"type": "http.response.body", "body": b"", "more_body": False})
