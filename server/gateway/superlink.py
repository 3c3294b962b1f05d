# SPDX-License-Identifier: Apache-2.0
"""The SuperLink behind the gateway: TLS on loopback, our own authority, connections that are kept; nothing of the caller's but its body and
Flower's own headers goes through.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from common.flower_compat.fleet_records import FLEET, MEDIA_TYPE
from server.gateway.denied import Code, Denied
from server.gateway.pool import SMALL_BYTES, Address, Answer, BrokenConnection, Pool
from server.home import ServerHome

LOOPBACK: Final = "127.0.0.1"
MAX_CONNECTIONS: Final = 64
IDLE_SECONDS: Final = 4.0
"""Flower's server closes a connection that was idle for 5 s; ours goes first, so that no request meets a closing one."""
HEALTH_SECONDS: Final = 2.0
PASSED_BACK: Final = ("content-type", "content-length", "flwr-version-incompatibility-message")
_PROTOBUF: Final = ((b"content-type", MEDIA_TYPE.encode()), (b"accept", MEDIA_TYPE.encode()))


class SuperLink:
    """The SuperLink of the coordinator's folder `home`; connections are opened when they are needed. For one event loop."""

    def __init__(self, home: ServerHome) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(home.ca_certificate)
        self._pool = Pool(Address(LOOPBACK, home.settings.superlink_port, context), MAX_CONNECTIONS, IDLE_SECONDS)

    @asynccontextmanager
    async def call(self, name: str, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> AsyncIterator[Answer]:
        """The answer to one Fleet call, its body not yet read. Raises Denied 502 when there is none."""
        with _told():
            async with self._pool.ask("POST", FLEET + name, [*headers, *_PROTOBUF], body) as answer:
                yield answer

    async def is_up(self) -> bool:
        """Whether it answers."""
        try:
            async with asyncio.timeout(HEALTH_SECONDS), self._pool.ask("GET", "/health") as answer:
                await whole(answer, SMALL_BYTES)
                return answer.is_success
        except (BrokenConnection, TimeoutError, Denied):
            return False

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()


def headers_back(answer: Answer) -> list[tuple[bytes, bytes]]:
    """What of the answer's head goes back to the site."""
    return [(name.encode(), answer.headers[name].encode("latin-1")) for name in PASSED_BACK if name in answer.headers]


async def whole(answer: Answer, limit_bytes: int) -> bytes:
    """The body of a short answer. Raises Denied when it is not short."""
    parts: list[bytes] = []
    async for part in answer.parts():
        parts.append(part)
        limit_bytes -= len(part)
        if limit_bytes < 0:
            raise Denied(502, Code.SUPERLINK_DOWN, "the SuperLink's answer is too large")
    return b"".join(parts)


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except BrokenConnection as error:
        raise Denied(502, Code.SUPERLINK_DOWN, f"the SuperLink does not answer ({error}); it is tried again") from error
