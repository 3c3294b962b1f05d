# SPDX-License-Identifier: Apache-2.0
"""One piece of heavy work in a process of its own, so that the caller never loads torch and memory goes back when it ends.

The work is a function of bytes to bytes, named `module:function`, that may report progress. The process is forked from one that has
the modules of `preload` loaded; what crosses the pipe are bytes with one letter in front, no pickle.
"""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection

from common.errors import InputError, WardroundError

Progress = Callable[[int, int], None]
_PROGRESS, _RESULT, _INPUT_ERROR, _ERROR = b"p", b"r", b"i", b"e"


def preload(modules: tuple[str, ...]) -> None:
    """Start the process that children are forked from, in the background; it imports `modules` once for all of them."""
    from multiprocessing import forkserver

    multiprocessing.get_context("forkserver").set_forkserver_preload(list(modules))
    forkserver.ensure_running()


def run_in_child(work: str, request: bytes, progress: Progress | None = None) -> bytes:
    """Run `work` on `request` in a child process and return its answer.

    Raises InputError or WardroundError with the child's own message, and WardroundError when the child died.
    """
    context = multiprocessing.get_context("forkserver")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_serve, args=(theirs, work, request), daemon=True)
    process.start()
    theirs.close()
    try:
        return _receive(ours, progress)
    except EOFError as error:
        raise WardroundError(f"the process for {work} died; was there enough memory?") from error
    finally:
        ours.close()
        process.kill()
        process.join()


def _receive(pipe: Connection, progress: Progress | None) -> bytes:
    while True:
        message = pipe.recv_bytes()
        kind, content = message[:1], message[1:]
        if kind == _RESULT:
            return content
        if kind == _INPUT_ERROR:
            raise InputError(content.decode().split("\n"))
        if kind == _ERROR:
            raise WardroundError(content.decode())
        if progress is not None:
            done, total = content.decode().split("/")
            progress(int(done), int(total))


def _serve(pipe: Connection, work: str, request: bytes) -> None:
    module, name = work.split(":")
    function = getattr(importlib.import_module(module), name)

    def report(done: int, total: int) -> None:
        pipe.send_bytes(_PROGRESS + f"{done}/{total}".encode())

    try:
        pipe.send_bytes(_RESULT + function(request, report))
    except InputError as error:
        pipe.send_bytes(_INPUT_ERROR + str(error).encode())
    except WardroundError as error:
        pipe.send_bytes(_ERROR + str(error).encode())
