# SPDX-License-Identifier: Apache-2.0
"""A TLS server that answers every call with the same status and body, whatever it was asked."""

import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class JunkServer(ThreadingHTTPServer):
    daemon_threads = True
    status: int = 200
    body: bytes = b""
    headers: dict[str, str]
    paths: list[str]
    missing_bytes: int = 0
    """How many bytes of each answer never come."""

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: JunkServer

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.paths.append(self.path)
        body = self.server.body  # once: a test sets another one while a heartbeat is being answered
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body) + self.server.missing_bytes))
        self.end_headers()
        self.wfile.write(body)

    do_GET = do_POST

    def log_message(self, *arguments: object) -> None:
        pass


@contextmanager
def junk_server(certificate: Path, key: Path) -> Iterator[JunkServer]:
    server = JunkServer(("127.0.0.1", 0), _Handler)
    server.paths, server.headers = [], {}
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
