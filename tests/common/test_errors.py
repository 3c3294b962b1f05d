# SPDX-License-Identifier: Apache-2.0
import inspect
import re

import common.errors
from common.errors import EXIT_CODE_HELP, ExitCode, InputError, RefusedError, WardroundError


def test_numbers_are_pinned() -> None:
    assert {code.name: code.value for code in ExitCode} == {
        "DONE": 0,
        "INTERNAL": 1,
        "BAD_INPUT": 2,
        "REFUSED": 3,
        "INTERRUPTED": 4,
        "PROTOCOL": 5,
        "STORAGE": 6,
        "FEDERATION": 7,
        "AUDIT": 8,
    }


def test_every_exit_code_has_help() -> None:
    assert list(EXIT_CODE_HELP) == list(ExitCode)
    assert all(EXIT_CODE_HELP.values())


def test_the_tree_in_the_docstring_is_true() -> None:
    classes = {name: kind for name, kind in inspect.getmembers(common.errors, inspect.isclass) if issubclass(kind, WardroundError)}
    drawn = dict(re.findall(r"^[\s|`-]*([A-Z]\w+)\s+(\d)\s", common.errors.__doc__ or "", re.MULTILINE))
    assert {name: str(int(kind.exit_code)) for name, kind in classes.items()} == drawn


def test_problems_of_an_input_are_kept_apart() -> None:
    assert InputError("one").problems == ("one",)
    several = InputError(text for text in ("one", "two"))
    assert several.problems == ("one", "two")
    assert str(several) == "one\ntwo"


def test_a_refusal_carries_its_code() -> None:
    error = RefusedError("BUDGET_EXHAUSTED", "nothing is left")
    assert error.code == "BUDGET_EXHAUSTED"
    assert str(error) == "BUDGET_EXHAUSTED: nothing is left"
