# SPDX-License-Identifier: Apache-2.0
import os

import pytest

from common.child import run_in_child
from common.errors import InputError, WardroundError
from tests.support import work


def test_the_answer_and_the_progress_come_back() -> None:
    seen: list[tuple[int, int]] = []
    answer = run_in_child("tests.support.work:double", b"ab", lambda done, total: seen.append((done, total)))
    assert answer == b"abab"
    assert seen == [(1, 2), (2, 2)]
    assert work.calls == 0, "the work ran in this process"


def test_it_is_another_process() -> None:
    assert int(run_in_child("tests.support.work:process", b"")) != os.getpid()


def test_errors_of_ours_come_back_as_what_they_were() -> None:
    with pytest.raises(InputError) as caught:
        run_in_child("tests.support.work:complain", b"")
    assert caught.value.problems == ("first", "second")


def test_a_child_that_dies_is_an_error_and_not_a_wait() -> None:
    with pytest.raises(WardroundError, match="died"):
        run_in_child("tests.support.work:die", b"")
