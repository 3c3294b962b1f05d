# SPDX-License-Identifier: Apache-2.0
"""The mutation suite itself: every mutation can still be made, names tests that exist, and the runner tells what became of it."""

import ast
from pathlib import Path

import pytest

import common
from tests.mutations.mutation import Mutation, mutation
from tests.mutations.run import Verdict, copy_checkout, run_baseline, run_mutation
from tests.mutations.tables import MUTATIONS
from tests.support.node_ids import missing_tests

PROJECT = Path(__file__).resolve().parents[2]
CODE = Path(common.__file__).resolve().parents[1]


def test_everything_that_has_to_be_tried_is_there() -> None:
    names = {mutation.name for mutation in MUTATIONS}
    assert len(names) == len(MUTATIONS)
    assert names >= {
        "remove clipping",
        "reuse noise",
        "shuffle instead of Poisson",
        "seed the generator",
        "reset the ledger each round",
        "skip empty batches",
        "divide by the actual batch size",
        "noise from the true count",
        "group by image",
        "weight by patient count",
        "send before releasing",
    }


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_can_be_made_and_is_python(mutation: Mutation) -> None:
    assert mutation.problems(CODE) == []
    for edit in mutation.edits:
        changed = (CODE / edit.file).read_text(encoding="utf-8").replace(edit.old, edit.new)
        assert changed != (CODE / edit.file).read_text(encoding="utf-8")
        ast.parse(changed)


def test_every_test_that_has_to_turn_red_exists() -> None:
    assert missing_tests({test for mutation in MUTATIONS for test in mutation.tests}, PROJECT) == []
    assert all(mutation.tests and set(mutation.traps) <= set(range(1, 31)) for mutation in MUTATIONS)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small project with one function and one test of it."""
    source = tmp_path / "source"
    for folder in ("common", "tests", "docs"):
        (source / folder).mkdir(parents=True)
    (source / "common" / "__init__.py").write_text("")
    (source / "common" / "clip.py").write_text("def clip(value):\n    return min(value, 1)\n\n\ndef unused():\n    return 1\n")
    test = "from common.clip import clip\n\n\ndef test_clip():\n    assert clip(3) == 1\n"
    (source / "tests" / "test_clip.py").write_text(test)
    (tmp_path / "copy").mkdir()
    return copy_checkout(source, tmp_path / "copy" / "checkout")


TEST = "tests/test_clip.py::test_clip"


@pytest.mark.parametrize(
    ("old", "new", "verdict", "detail"),
    [
        ("min(value, 1)", "value", Verdict.KILLED, TEST),
        ("def unused():\n    return 1", "def unused():\n    return 2", Verdict.SURVIVED, "every test passed"),
        pytest.param("return", "yield", Verdict.STALE, "occurs 2 times", marks=pytest.mark.slow),
        pytest.param("max(value, 1)", "value", Verdict.STALE, "occurs 0 times", marks=pytest.mark.slow),
        pytest.param("def clip(value)", "def clap(value)", Verdict.BROKEN, "cannot import name", marks=pytest.mark.slow),
    ],
)
def test_the_runner_tells_what_became_of_a_mutation(checkout: Path, old: str, new: str, verdict: Verdict, detail: str) -> None:
    before = (checkout / "common" / "clip.py").read_text()
    outcome = run_mutation(checkout, mutation("one", "common/clip.py", old, new, TEST))
    assert outcome.verdict is verdict and detail in outcome.detail
    assert (checkout / "common" / "clip.py").read_text() == before


def test_the_unchanged_code_has_to_pass(checkout: Path) -> None:
    one = mutation("one", "common/clip.py", "min(value, 1)", "value", TEST)
    assert run_baseline([checkout], [one]).verdict is Verdict.SURVIVED
    (checkout / "common" / "clip.py").write_text("def clip(value):\n    return value\n")
    assert run_baseline([checkout], [one]).verdict is Verdict.KILLED
