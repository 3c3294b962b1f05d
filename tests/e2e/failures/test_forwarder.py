# SPDX-License-Identifier: Apache-2.0
"""The line that the network scenarios cut really is cut, and really heals."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.support.forwarder import Forwarder


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that sends back what it gets; its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(one: socket.socket) -> None:
        with suppress(OSError), one:
            while content := one.recv(1024):
                one.sendall(content)

    def serve() -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=answer, args=(listener.accept()[0],), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    yield int(listener.getsockname()[1])
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def line(echo: int) -> Iterator[Forwarder]:
    with Forwarder(echo) as forwarder:
        yield forwarder


def dial(line: Forwarder) -> socket.socket:
    one = socket.create_connection(("127.0.0.1", line.port), 5)
    one.settimeout(5)
    return one


def says(one: socket.socket, text: bytes) -> bytes:
    one.sendall(text)
    return one.recv(1024)


def test_it_carries_both_ways(line: Forwarder) -> None:
    with dial(line) as one, dial(line) as other:
        assert (says(one, b"one"), says(other, b"other")) == (b"one", b"other")
    assert line.connections == 2


def test_held_it_carries_nothing_and_healed_it_carries_what_waited(line: Forwarder) -> None:
    with dial(line) as one:
        assert says(one, b"before") == b"before"
        line.hold()
        one.sendall(b"meanwhile")
        one.settimeout(0.3)
        with pytest.raises(TimeoutError):
            one.recv(1024)
        with dial(line) as new:
            new.settimeout(0.3)
            with pytest.raises(TimeoutError):
                says(new, b"new")
        line.heal()
        one.settimeout(5)
        assert one.recv(1024) == b"meanwhile"


def test_dropped_it_resets_and_refuses_until_it_is_healed(line: Forwarder) -> None:
    with dial(line) as one:
        assert says(one, b"before") == b"before"
        line.drop()
        with suppress(ConnectionResetError, BrokenPipeError):
            assert says(one, b"after") == b"", "closed, if it was not reset"
    with pytest.raises(ConnectionRefusedError):
        dial(line)
    line.heal()
    with dial(line) as again:
        assert says(again, b"healed") == b"healed"


def test_who_hangs_up_is_heard_at_the_other_end(line: Forwarder) -> None:
    with dial(line) as one:
        assert says(one, b"x") == b"x"
        one.shutdown(socket.SHUT_WR)
        assert one.recv(1024) == b""
