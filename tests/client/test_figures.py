# SPDX-License-Identifier: Apache-2.0
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from client import figures
from client.figures import MOST_KEPT, Figures
from common.privacy.accountant import (
    UNPROTECTED_JSON,
    composed_json,
    discrete_laplace,
    epsilon_pld,
    event_from_json,
    event_to_json,
    poisson_gaussian,
)

ROUND = event_to_json(poisson_gaussian(0.1, 1.5, 10))
COUNTS = event_to_json(discrete_laplace(0.5))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "figures.json"


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on nothing can be worked out any more."""

    def refuse(history: object, delta: float) -> float:
        raise AssertionError("the accountant was asked")

    def forbid() -> None:
        monkeypatch.setattr(figures, "epsilon_pld", refuse)

    return forbid


def exact(*events: str, delta: float = 1e-6) -> float:
    return epsilon_pld([event_from_json(event) for event in events], delta)


def test_it_is_the_accountants_number_and_is_worked_out_once(path: Path, unasked: Callable[[], None]) -> None:
    found = Figures(path).epsilon([ROUND, COUNTS, ROUND], 1e-6)
    assert found == exact(ROUND, ROUND, COUNTS)
    unasked()
    assert Figures(path).epsilon([COUNTS, ROUND, ROUND], 1e-6) == found, "in any order, in another process"
    for events, delta in (([ROUND, COUNTS], 1e-6), ([ROUND] * 3, 1e-6), ([ROUND, COUNTS, ROUND], 1e-5)):
        with pytest.raises(AssertionError, match="asked"):
            Figures(path).epsilon(events, delta)


def test_another_accountant_is_asked_anew(path: Path, unasked: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    Figures(path).epsilon([ROUND], 1e-6)
    unasked()
    monkeypatch.setattr(figures, "INTERVALS_PER_EPSILON", 1.0)
    with pytest.raises(AssertionError, match="asked"):
        Figures(path).epsilon([ROUND], 1e-6)


def test_nothing_spent_and_nothing_protected(path: Path, unasked: Callable[[], None]) -> None:
    assert Figures(path).epsilon([], 1e-6) == 0.0
    assert math.isinf(Figures(path).epsilon([ROUND, UNPROTECTED_JSON], 1e-6))
    unasked()
    assert math.isinf(Figures(path).epsilon([UNPROTECTED_JSON, ROUND], 1e-6))


@pytest.mark.parametrize("damage", [b"", b"[1]", b'{"a": "x"}', b'{"a": null}', b"\xff", b'{"QUESTION": "nan"}', b'{"QUESTION": "-1.0"}'])
def test_a_damaged_file_is_as_good_as_none(path: Path, damage: bytes) -> None:
    found = Figures(path).epsilon([ROUND], 1e-6)
    question = next(iter(json.loads(path.read_text())))
    path.write_bytes(damage.replace(b"QUESTION", question.encode()))
    assert Figures(path).epsilon([ROUND], 1e-6) == found == exact(ROUND)
    assert json.loads(path.read_text())[question] == repr(found)


def test_what_cannot_be_kept_is_shown_all_the_same(tmp_path: Path) -> None:
    assert Figures(tmp_path / "no such folder" / "figures.json").epsilon([ROUND], 1e-6) == exact(ROUND)


def test_the_file_does_not_grow_without_end(path: Path) -> None:
    path.write_text(json.dumps({str(number): "1.0" for number in range(MOST_KEPT)}))
    Figures(path).epsilon([ROUND], 1e-6)
    kept = json.loads(path.read_text())
    assert len(kept) == MOST_KEPT and "0" not in kept and "1" in kept


def test_composed_text_is_that_of_the_composed_event() -> None:
    from dp_accounting import dp_event

    for text in (ROUND, COUNTS):
        assert composed_json(text, 7) == event_to_json(dp_event.SelfComposedDpEvent(event_from_json(text), 7))
