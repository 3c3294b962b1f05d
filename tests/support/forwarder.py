# SPDX-License-Identifier: Apache-2.0
"""A line between a site and the coordinator that can be cut: a TCP forwarder on loopback.

hold    nothing is carried any more in either direction, connections stay open: what a firewall does that drops packets
drop    all connections are reset, and new ones refused: a cable pulled at the other end, a router restarted
heal    everything is carried again; what waited during `hold` arrives, as TCP would send it again
"""

from __future__ import annotations

import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType

BLOCK_BYTES = 1 << 16
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER on, no time: closing resets the connection."""


class Forwarder:
    """Carries every connection to `port` (on loopback) to `target_port`. `connections` counts those that came."""

    def __init__(self, target_port: int) -> None:
        self._target = ("127.0.0.1", target_port)
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._closed = False
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self._start(self._accept, self._listener)

    def __enter__(self) -> Forwarder:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def hold(self) -> None:
        """Carry nothing; keep what is open."""
        self._open.clear()

    def drop(self) -> None:
        """Reset what is open; refuse what comes."""
        self._shut(self._listener)
        for one in self._taken():
            with suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self._shut(one)

    def heal(self) -> None:
        """Carry everything again."""
        self._open.set()
        if self._listener.fileno() < 0:
            self._listener = socket.create_server(("127.0.0.1", self.port))
            self._start(self._accept, self._listener)

    def close(self) -> None:
        """End it."""
        self._closed = True
        self.drop()
        self._open.set()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                self.connections += 1
                self._start(self._carry, near)

    def _carry(self, near: socket.socket) -> None:
        """One connection; while nothing is carried, its far end waits too."""
        self._keep(near)
        self._open.wait()
        try:
            far = socket.create_connection(self._target, 10)
        except OSError:
            self._shut(near)
            return
        far.settimeout(None)
        self._keep(far)
        self._start(self._pump, far, near)
        self._pump(near, far)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while content := source.recv(BLOCK_BYTES):
                self._open.wait()
                target.sendall(content)
        self._open.wait()
        for one in (source, target):
            self._shut(one)

    def _keep(self, one: socket.socket) -> None:
        with self._lock:
            self._sockets.add(one)
        if self._closed:
            self._shut(one)

    def _taken(self) -> set[socket.socket]:
        with self._lock:
            taken, self._sockets = self._sockets, set()
        return taken

    @staticmethod
    def _shut(one: socket.socket) -> None:
        """Wake whoever waits for it, and close it."""
        with suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()

    def _start(self, target: object, *arguments: socket.socket) -> None:
        assert callable(target)
        threading.Thread(target=target, args=arguments, name="forwarder", daemon=True).start()
