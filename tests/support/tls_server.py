# SPDX-License-Identifier: Apache-2.0
"""A small real TLS server of a test: asks for a client certificate without insisting, as the gateway does, and answers as it is told."""

import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.crypto.certificates import Authority

Answer = tuple[int, Any]
Answerer = Callable[[str, str, bytes, bytes | None], Answer]
"""Method, path, body, the client's certificate (DER) -> status and body (bytes, or what becomes JSON)."""


@dataclass
class Asked:
    """What was asked."""

    method: str
    path: str
    body: bytes
    certificate: bytes | None


@dataclass
class TlsServer:
    """A running server. `asked` fills while it runs."""

    port: int
    asked: list[Asked] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"https://localhost:{self.port}"


def write_server_certificate(
    folder: Path, authority: Authority, names: tuple[str, ...] = ("localhost", "127.0.0.1"), *, days: int = 1, now: float | None = None
) -> None:
    """ca.crt, server.crt and server.key in `folder`."""
    folder.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    form = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "server.key").write_bytes(key.private_bytes(*form))
    (folder / "ca.crt").write_text(authority.pem)
    (folder / "server.crt").write_text(authority.server_certificate(key.public_key(), names, days, time.time() if now is None else now))


@contextmanager
def serving(folder: Path, answer: Answerer) -> Iterator[TlsServer]:
    """Serve with the certificate in `folder` on a free port of loopback until the block ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.crt", folder / "server.key")
    context.load_verify_locations(folder / "ca.crt")
    context.verify_mode = ssl.CERT_OPTIONAL
    facts = TlsServer(0)
    server = _Server(("127.0.0.1", 0), _handler(answer, facts))
    server.context = context
    facts.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield facts
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    """TLS begins in the thread of the connection, so that a client that goes away during it disturbs nobody."""

    daemon_threads = True
    context: ssl.SSLContext

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(10)
        with self.context.wrap_socket(request, server_side=True) as connection:
            super().finish_request(connection, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that the client broke is what a test looks at on the other side."""


def _handler(answer: Answerer, facts: TlsServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._answer()

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            certificate = self.connection.getpeercert(binary_form=True)  # type: ignore[attr-defined]
            facts.asked.append(Asked(self.command, self.path, body, certificate))
            status, content = answer(self.command, self.path, body, certificate)
            payload = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(payload)))
            if 300 <= status < 400:
                self.send_header("Location", f"{self.path}/elsewhere")
            self.end_headers()
            self.wfile.write(payload)

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    return Handler


@contextmanager
def connect_proxy() -> Iterator[list[str]]:
    """A real HTTP proxy that tunnels every CONNECT; yields its URL, then the targets that were asked for."""
    targets: list[str] = []

    class Tunnel(BaseHTTPRequestHandler):
        def do_CONNECT(self) -> None:
            targets.append(self.path)
            host, _, port = self.path.rpartition(":")
            with socket.create_connection((host, int(port)), 10) as far:
                self.send_response(200)
                self.end_headers()
                back = threading.Thread(target=_pump, args=(far, self.connection))
                back.start()
                _pump(self.connection, far)
                back.join()

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Tunnel)
    targets.append(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield targets
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while content := source.recv(1 << 16):
            target.sendall(content)
        target.shutdown(socket.SHUT_WR)
