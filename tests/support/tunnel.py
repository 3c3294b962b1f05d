# SPDX-License-Identifier: Apache-2.0
"""A port on this machine whose connections go on to another one, bare or inside TLS with somebody's certificate.

Inside TLS it is what an insider runs so that tools without a client certificate reach the gateway with the hospital's; bare, on another
address, it is a coordinator reached under a name that its certificate does not have.
"""

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator

CHUNK_BYTES = 1 << 16
Context = ssl.SSLContext | None


@contextlib.contextmanager
def tunnel(port: int, context: Context = None, host: str = "127.0.0.1") -> Iterator[int]:
    """The port on `host` from which all goes to `port` of 127.0.0.1, inside TLS if there is a `context`."""
    with socket.create_server((host, 0)) as listener:
        thread = threading.Thread(target=_accept, args=(listener, port, context), daemon=True)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def _accept(listener: socket.socket, port: int, context: Context) -> None:
    with contextlib.suppress(OSError):  # the listener is closed at the end
        while True:
            near, _ = listener.accept()
            threading.Thread(target=_serve, args=(near, port, context), daemon=True).start()


def _serve(near: socket.socket, port: int, context: Context) -> None:
    with near, contextlib.suppress(OSError), _connected(port, context) as far:
        back = threading.Thread(target=_pump, args=(far, near), daemon=True)
        back.start()
        _pump(near, far)
        back.join(10)


def _connected(port: int, context: Context) -> socket.socket:
    plain = socket.create_connection(("127.0.0.1", port), 10)
    plain.settimeout(None)
    return plain if context is None else context.wrap_socket(plain, server_hostname="127.0.0.1")


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while part := source.recv(CHUNK_BYTES):
            target.sendall(part)
    with contextlib.suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
