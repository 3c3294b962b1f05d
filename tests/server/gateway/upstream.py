# SPDX-License-Identifier: Apache-2.0
"""A small real server in the SuperLink's place: TLS with the coordinator's certificate, answers what it is told, remembers what came."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn

from server.home import ServerHome

PROTOBUF = b"application/protobuf"


@dataclass
class Seen:
    """A request that reached it; `port` tells connections apart."""

    path: str
    headers: list[tuple[bytes, bytes]]
    body: bytes
    port: int


@dataclass
class Upstream:
    """`answers` by path (default: 200, nothing)."""

    answers: dict[str, tuple[int, bytes]] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        if scope["path"] != "/health":
            self.seen.append(Seen(scope["path"], scope["headers"], body, scope["client"][1]))
        status, content = self.answers.get(scope["path"], (200, b""))
        head = [(b"content-type", PROTOBUF), (b"content-length", str(len(content)).encode()), (b"x-inner", b"secret")]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": content})

    def took(self, name: str) -> list[Seen]:
        """The Fleet calls `name` that reached it."""
        return [one for one in self.seen if one.path == f"/v1/fleet/{name}"]

    def answer(self, name: str, content: bytes, status: int = 200) -> None:
        """Answer the Fleet call `name` like this from now on."""
        self.answers[f"/v1/fleet/{name}"] = (status, content)


@contextmanager
def upstream(home: ServerHome) -> Iterator[Upstream]:
    """Serve on the SuperLink's port until the block ends."""
    app = Upstream()
    config = uvicorn.Config(
        app,
        host="127.0.0.1",
        port=home.settings.superlink_port,
        ssl_certfile=home.certificate,
        ssl_keyfile=home.certificate_key,
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        loop="asyncio",
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield app
    finally:
        server.should_exit = True
        thread.join(10)
