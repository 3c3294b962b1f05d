# SPDX-License-Identifier: Apache-2.0
"""The training process: model, data and GPU context stay loaded, and it may die without taking its parent along.

The parent sends a node's context and one message over a private pipe and gets the reply and the context back, as bytes of fixed schema.
When the process dies, `receive` says so at once (`WorkerLost`); the next message starts a new one. The processes are forked from a
server that has torch and opacus loaded already, so a new one costs milliseconds. When the parent is killed, the process ends at once too:
nobody would take its reply, and the next parent's would have to wait for it.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerProcess

    from flwr.clientapp import ClientApp

STOP_SECONDS = 5.0
Parts = Sequence[bytes]
"""A message as bytes (`common.flower_compat.messages.message_to_parts`)."""


class WorkerLost(Exception):
    """The process ended before it answered."""


@dataclass(frozen=True)
class WorkerSettings:
    """`app` is `module:attribute` of a ClientApp; `environment` is set in the process before that is imported."""

    app: str
    environment: Mapping[str, str]


class Worker:
    """The parent's handle on one training process. Used by one thread at a time."""

    def __init__(self, settings: WorkerSettings) -> None:
        self._settings = settings
        self._process: ForkServerProcess | None = None
        self._pipe: Connection | None = None

    @property
    def process_id(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process if it does not run."""
        if self._process is not None:
            return
        context = multiprocessing.get_context("forkserver")
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, self._settings), daemon=True)
        process.start()
        theirs.close()
        self._pipe, self._process = ours, process

    def send(self, context: bytes, message: Parts) -> None:
        """Hand the process one message, with its node's context. Raises WorkerLost when the process is dead."""
        try:
            self.start()
            pipe, _ = self._running()
            send_all(pipe, context, message)
        except (EOFError, OSError) as error:
            self._forget()
            raise WorkerLost from error

    def receive(self) -> tuple[bytes, Parts]:
        """Wait for the app's answer; returns its context and its reply. Raises WorkerLost as soon as the process dies."""
        try:
            return receive_all(self._receive)
        except (EOFError, OSError) as error:
            self._forget()
            raise WorkerLost from error

    def _running(self) -> tuple[Connection, ForkServerProcess]:
        if self._pipe is None or self._process is None:
            raise WorkerLost
        return self._pipe, self._process

    def _receive(self) -> bytes:
        pipe, process = self._running()
        ready = wait([pipe, process.sentinel])
        if pipe not in ready and not pipe.poll():
            raise EOFError
        return pipe.recv_bytes()

    def _forget(self) -> None:
        process, self._process = self._process, None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if process is not None:
            process.kill()
            process.join(STOP_SECONDS)

    def kill(self) -> None:
        """End the process at once; `receive`, if it waits, raises WorkerLost. The only method for another thread."""
        process = self._process
        if process is not None:
            process.kill()

    def stop(self) -> None:
        """End the process: closing the pipe tells it to; kill it if it does not listen."""
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None
        if self._process is not None:
            self._process.join(STOP_SECONDS)
            self._forget()


def serve(pipe: Connection, settings: WorkerSettings) -> None:
    """The process: answer messages until the pipe closes. The parent handles Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    os.environ.update(settings.environment)
    module, attribute = settings.app.split(":")
    app: ClientApp = getattr(importlib.import_module(module), attribute)
    while True:
        try:
            context, message = receive_all(pipe.recv_bytes)
        except EOFError:
            return
        send_all(pipe, *answer(app, context, message))
        del context, message


def _end_with_parent() -> None:
    """From now on this process ends when the one that started it does, however that ends."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_wait_for_end, args=(parent.sentinel,), name="leash", daemon=True).start()


def _wait_for_end(sentinel: int) -> None:
    wait([sentinel])
    os._exit(1)


def send_all(pipe: Connection, context: bytes, message: Parts) -> None:
    """A context and the parts of a message, with their number before them."""
    for part in (context, str(len(message)).encode(), *message):
        pipe.send_bytes(part)


def receive_all(receive: Callable[[], bytes]) -> tuple[bytes, Parts]:
    """What `send_all` sent, read with `receive`."""
    context, count = receive(), int(receive())
    return context, [receive() for _ in range(count)]


def answer(app: ClientApp, context_bytes: bytes, parts: Parts) -> tuple[bytes, Parts]:
    """Run the app on one message; returns context and reply as bytes. An app that raises answers with the class name only."""
    from flwr.app import Error, Message

    from common.flower_compat import messages

    context, message = messages.context_from_bytes(context_bytes), messages.message_from_parts(parts)
    try:
        reply = app(message, context)
    except Exception as error:  # noqa: BLE001 (the process edge: the cause is printed here and stays on this machine)
        traceback.print_exc()
        reply = Message(Error(messages.APP_RAISED, type(error).__name__), reply_to=message)
    return messages.context_to_bytes(context), messages.message_to_parts(reply)
