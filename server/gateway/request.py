# SPDX-License-Identifier: Apache-2.0
"""One request as the gateway sees it, and the strict reading of its headers and body.

The path counts byte for byte as it was sent: nothing is decoded, joined or cleaned, so there is no second spelling of a call. A body needs
a Content-Length, no other framing is taken, and no header that the gateway acts on or passes on may come twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from server.gateway.connection import FINGERPRINT
from server.gateway.denied import ClientGone, Code, Denied

if TYPE_CHECKING:
    from uvicorn._types import ASGIReceiveCallable, HTTPScope


@dataclass
class Request:
    """`path` and `query` as they were sent; `fingerprint` of the certificate, None without one; `notes` go into the access log."""

    method: str
    path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    address: str
    fingerprint: str | None
    receive: ASGIReceiveCallable
    received_bytes: int = 0
    notes: dict[str, str | int] = field(default_factory=dict)

    @classmethod
    def of(cls, scope: HTTPScope, receive: ASGIReceiveCallable) -> Request:
        """The request of an ASGI scope that `CertificateProtocol` has made."""
        client = scope.get("client")
        return cls(
            method=scope["method"],
            path=scope["raw_path"] or b"",
            query=scope["query_string"],
            headers=list(scope["headers"]),
            address=client[0] if client else "",
            fingerprint=scope.get("state", {}).get(FINGERPRINT),
            receive=receive,
        )

    def header(self, name: str) -> bytes | None:
        """The only value of a header (named in lower case). Raises Denied when there are several."""
        wanted = name.encode()
        values = [value for key, value in self.headers if key == wanted]
        if len(values) > 1:
            raise Denied(400, Code.BAD_HEADERS, f"header {name} came {len(values)} times; send it once")
        return values[0] if values else None

    def chosen_headers(self, names: Iterable[str]) -> list[tuple[bytes, bytes]]:
        """Those of the named headers that are there. Raises Denied for one that came twice."""
        return [(name.encode(), value) for name in names if (value := self.header(name)) is not None]

    def expected_bytes(self, limit_bytes: int) -> int:
        """The size of the body. Raises Denied: framed otherwise, no size, too large."""
        if any(name == b"transfer-encoding" for name, _ in self.headers):
            raise Denied(400, Code.BAD_HEADERS, "Transfer-Encoding is not taken; send the body with Content-Length")
        size = self.header("content-length")
        if size is None or not size.isdigit():
            raise Denied(400, Code.BAD_HEADERS, "the request needs a Content-Length")
        if len(size) > 18 or int(size) > limit_bytes:
            raise Denied(413, Code.BODY_TOO_LARGE, f"the body may have at most {limit_bytes} bytes")
        return int(size)

    async def body(self, limit_bytes: int, chunk_seconds: float, total_seconds: float | None = None) -> bytes:
        """The whole body. Raises Denied when it is too large or too slow, ClientGone when it does not end."""
        try:
            async with asyncio.timeout(total_seconds):
                parts = [part async for part in self.parts(limit_bytes, chunk_seconds)]
        except TimeoutError:
            raise _too_slow() from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    async def parts(self, limit_bytes: int, chunk_seconds: float) -> AsyncIterator[bytes]:
        """The body as it comes. Raises as `body` does; then what came before is not the whole of it."""
        expected_bytes = self.expected_bytes(limit_bytes)
        more = True
        while more:
            try:
                async with asyncio.timeout(chunk_seconds):
                    message = await self.receive()
            except TimeoutError:
                raise _too_slow() from None
            if message["type"] != "http.request":
                raise ClientGone
            part = message.get("body", b"")
            self.received_bytes += len(part)
            more = message.get("more_body", False)
            if self.received_bytes > expected_bytes or (not more and self.received_bytes < expected_bytes):
                raise Denied(400, Code.BAD_HEADERS, "the body has another size than its Content-Length")
            yield part


def _too_slow() -> Denied:
    return Denied(400, Code.BODY_TOO_SLOW, "the body did not come in time; check the connection and try again")
