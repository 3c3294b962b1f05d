# SPDX-License-Identifier: Apache-2.0
"""docs/privacy.md: the thirty traps with tests that exist, everything that has to be said, and numbers that are those of the code."""

import math
import re
from pathlib import Path

import pytest

from common.privacy import engines, grid, noise
from common.privacy.bookkeeping import bounds
from tests.support.node_ids import missing_tests

PROJECT = Path(__file__).resolve().parents[1]
PAGE = (PROJECT / "docs" / "privacy.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)
TEST = re.compile(r"`(tests/[\w/]+\.py(?:::\w+)?)`")


def test_there_are_thirty_traps_each_with_a_guard_or_a_reason() -> None:
    rows = ROW.findall(PAGE.split("## The thirty traps")[1])
    assert [int(number) for number, _, _ in rows] == list(range(1, 31))
    assert [number for number, _, guard in rows if not (TEST.findall(guard) or guard.startswith("cannot occur: "))] == []


def test_every_test_that_the_page_names_exists() -> None:
    named = TEST.findall(PAGE)
    assert len(named) >= 30
    assert missing_tests(named, PROJECT) == []


def test_a_test_that_does_not_exist_is_found() -> None:
    here = "tests/test_privacy_docs.py"
    wrong = [f"{here}::test_nothing", "tests/test_no_such_file.py", "tests/conftest.py"]
    assert missing_tests([here, f"{here}::test_a_test_that_does_not_exist_is_found", *wrong], PROJECT) == wrong


@pytest.mark.parametrize(
    "words",
    [
        "several hospitals",
        "ε is for one run",
        "prints the composed ε",
        "Tuning on real cohorts is charged",
        "Duration and timing",
        "Root at the site is trusted",
        "does not unlearn",
        "two ids for one person are two units",
        "two or three sites an exact sum would not hide anybody",
        "rolling everything back while the coordinator helps",
        "adding or removing one patient",
    ],
)
def test_what_has_to_be_said_is_said(words: str) -> None:
    assert words in PAGE


def test_the_numbers_are_those_of_the_code() -> None:
    assert engines.sensitivity("opacus", 13_889) == pytest.approx(1.00012, abs=5e-6) and "1.00012" in PAGE
    assert engines.sensitivity("bookkeeping", 13_889) == pytest.approx(1.0021, abs=5e-5) and "1.0021" in PAGE
    large = 10_000_000
    assert engines.sensitivity("bookkeeping", large) == pytest.approx(1.008 + large**0.5 * 2.0**-20 * 1.5, abs=1e-3)
    assert bounds.failure_mass(1) == 2 * 2.0**-57 and "2·T·2^-57" in PAGE
    assert (bounds.BLOCK, bounds.MOST_IN_FLOAT, bounds.LEAST_WEIGHTS, bounds.CERTIFIED_ERROR) == (16, 1024, 65_536, 2.0**-8)
    assert grid.GRID_BITS == 20 and grid.SUMMATION_SLACK == 2.0**-17
    assert noise._MOST_BITS == 255 and "255 in all" in PAGE
    assert noise.tail_mass(1) == 2.0**-212 and "η = d·T·2^-212" in PAGE
    assert noise.QUANTILE_ERROR == 2.0**-48 and noise._CELL_ERROR == 2.0**-43 and "6·2^-48 + 2^-43" in PAGE
    assert int(noise._FINE_CELLS) == 2**43 and noise.LARGEST_STANDARD_DEVIATION == 2.0**36


def test_the_inequalities_of_the_sampler_hold() -> None:
    """The steps of the derivation that are plain numbers."""
    from scipy.stats import norm

    assert norm.sf(5.0) < 2.0**-21 and 2 * norm.sf(18.0) < 2.0**-238 and norm.sf(21.0) < 1e-97
    assert norm.pdf(0) / norm.sf(0) > 0.79 and 0.5 / 0.79 < 0.64
    assert 0.64 * 2.0**-43 + 2.0**-52 / 0.79 + 6 * 2.0**-50 + 5 * 2.0**-53 < 6 * 2.0**-48 + 2.0**-43
    assert 1e-90 < 2.0**-298 and 2.0**-256 + 2 * 2.0**-298 < 2.0**-255
    assert 18 * 2**36 + 1 < 2**41 and 2.0**41 * 2.0**-254 + 2.0**-238 < 2.0**-212


def test_what_the_sampler_costs_is_as_said() -> None:
    def cost(epsilon: float, count: int) -> float:
        return (1 + math.exp(epsilon)) * noise.tail_mass(count)

    assert cost(8, 10**12) < 1e-48 and cost(100, 10**12) < 5e-9 < 1e-6 / 100
    assert bounds.failure_mass(100_000) < 2e-12
