# SPDX-License-Identifier: Apache-2.0
"""`common.aside`: one call, one result, with a thread and without one."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

import pytest

from common import aside
from common.aside import Aside
from common.errors import InputError


def test_the_call_is_made_in_another_thread() -> None:
    begun = threading.Event()
    call = Aside(lambda: begun.set() or threading.get_ident())
    assert begun.wait(10), "before anybody asks"
    assert call.result() != threading.get_ident()
    assert call.result() == call.result()


def never_begins(call: Callable[[], None], arguments: tuple[()]) -> int:
    """A thread that dies before its first line, as where memory ends."""
    return 1


def cannot_be_had(call: Callable[[], None], arguments: tuple[()]) -> int:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("start", [never_begins, cannot_be_had])
def test_without_a_thread_whoever_asks_makes_the_call(monkeypatch: pytest.MonkeyPatch, start: Callable[..., int]) -> None:
    monkeypatch.setattr(aside, "start_new_thread", start)
    made: list[int] = []
    call = Aside(lambda: made.append(threading.get_ident()))
    assert made == []
    call.result()
    call.result()
    assert made == [threading.get_ident()]


def test_it_is_made_once_whoever_comes_first() -> None:
    for _ in range(200):
        made: list[int] = []
        Aside(partial(made.append, 1)).result()
        assert made == [1]


def failing(error: BaseException) -> Aside[None]:
    def fail() -> None:
        raise error

    return Aside(fail)


@pytest.mark.parametrize("error", [MemoryError("no room"), KeyError("x"), InputError("bad"), FileNotFoundError("gone")])
def test_what_it_raises_is_raised_where_it_is_asked_for(error: Exception) -> None:
    call = failing(error)
    for _ in range(2):
        with pytest.raises(type(error)) as raised:
            call.result()
        assert raised.value is error


class Strange(BaseException):
    """None of those that are carried over."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_whatever_else_ends_the_thread_nobody_waits_for_ever() -> None:
    call = failing(Strange())
    time.sleep(0.2)  # it was the thread's
    with pytest.raises(RuntimeError, match="without a result"):
        call.result()


NO_MEMORY = """
import resource, threading
from pathlib import Path
from common.aside import Aside
from common.errors import InputError
size_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size_bytes, size_bytes))
try:
    threading.Thread(target=print).start()
except RuntimeError:
    print("no thread")
print(Aside(threading.get_ident).result() == threading.get_ident())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is Linux's")
def test_a_process_that_gets_no_memory_makes_the_call_itself() -> None:
    done = subprocess.run([sys.executable, "-c", NO_MEMORY], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split("\n")[:2] == ["no thread", "True"]
