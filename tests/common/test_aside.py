# SPDX-License-Identifier: Apache-2.0
"""`common.aside`: one call, one result, with a thread and without one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial

import pytest

from common import aside
from common.aside import Aside


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


def test_what_it_raises_is_raised_where_it_is_asked_for() -> None:
    def fail() -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        Aside(fail).result()
