# SPDX-License-Identifier: Apache-2.0
"""A connection of the gateway under uvicorn: how much of a body it takes before anybody reads it."""

import asyncio
import socket
from pathlib import Path

import uvicorn

from server.gateway.connection import UNREAD_BYTES, CertificateProtocol
from server.gateway.serving import tls_context
from tests.server.gateway.conftest import founded
from tests.server.gateway.coordinator import tls

ONE_READ_BYTES = 1 << 18
"""What uvicorn's loop may hand over at once."""
BODY_BYTES = 64 << 20


async def never_reads(scope: object, receive: object, send: object) -> None:
    """An application that is busy with something else."""
    await asyncio.Event().wait()


def unread(connection: object) -> int:
    """Bytes of a body that wait for the application."""
    return len(connection.cycle.body) if isinstance(connection, CertificateProtocol) and connection.cycle is not None else 0


def test_a_body_that_nobody_reads_stays_at_the_other_end(tmp_path: Path) -> None:
    coordinator, *_ = founded(tmp_path)
    context = tls_context(coordinator.home)

    async def scene() -> int:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            config = uvicorn.Config(
                never_reads, http=CertificateProtocol, lifespan="off", log_level="critical", ssl_context_factory=lambda *_: context
            )
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve(sockets=[listener]))
            _, writer = await asyncio.open_connection(*listener.getsockname(), ssl=tls(coordinator), server_hostname="127.0.0.1")
            writer.write(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % BODY_BYTES + bytes(BODY_BYTES))
            kept, before = 0, -1
            while kept != before or not kept:
                await asyncio.sleep(0.5)
                kept, before = sum(unread(one) for one in server.server_state.connections), kept
            writer.transport.abort()
            server.force_exit = server.should_exit = True
            await serving
        return kept

    kept = asyncio.run(asyncio.wait_for(scene(), 30))
    assert UNREAD_BYTES < kept <= UNREAD_BYTES + ONE_READ_BYTES
