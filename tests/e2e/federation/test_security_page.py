# SPDX-License-Identifier: Apache-2.0
"""docs/security.md names the tests of this folder: every test that it names exists, and every attack that is tried here is on it."""

import ast
import re
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[2] / "docs" / "security.md"
ATTACKS = (
    *("test_outsiders.py", "test_flowers_tools.py", "test_false_papers.py", "test_insiders.py", "test_revocation.py"),
    *("test_local_user.py", "test_coordinator_turned_hostile.py", "test_policy.py"),
)
BESIDE = {"test_refusals_are_in_the_access_log"}
"""About the log of what was refused, not an attack."""


def names_in(path: Path) -> set[str]:
    """The names of the tests in a file."""
    found = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {one.name for one in found if isinstance(one, ast.FunctionDef) and one.name.startswith("test_")}


def named() -> set[str]:
    return set(re.findall(r"`(test_\w+)`", PAGE.read_text(encoding="utf-8")))


def test_every_test_that_the_page_names_exists() -> None:
    there = {name for path in HERE.parents[1].rglob("test_*.py") for name in names_in(path)}
    assert named() - there == set()


def test_every_attack_that_is_tried_is_on_the_page() -> None:
    tried = {name for file in ATTACKS for name in names_in(HERE / file)}
    assert tried - BESIDE - named() == set()
