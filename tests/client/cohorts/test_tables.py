# SPDX-License-Identifier: Apache-2.0
"""Tables of labels: what is read, what is refused, and which columns never enter."""

from pathlib import Path

import pytest

from client.cohorts.columns import column_problem, kind_of
from client.cohorts.tables import Listed, read_table
from client.pseudonyms import Pseudonyms
from common.errors import DataError
from tests.client.cohorts.exports import SECRET, write_table

NAMES = Pseudonyms(SECRET)


def test_a_files_own_line_comes_before_its_patients(tmp_path: Path) -> None:
    rows = [("p", "", "1", "f"), ("p", "a.png", "0", ""), ("q", "b.png", "1", "m")]
    path = write_table(tmp_path / "t.csv", ("pid", "file", "ill", "sex"), rows)
    table = read_table(path, Listed("pid", "file", ("ill",), None, ("sex",)), NAMES, ["a.png", "b.png", "c.png"])
    assert table.cells_for("a.png", NAMES.of("p")) == ("0", "f"), "the empty cell comes from the patient's line"
    assert table.cells_for("c.png", NAMES.of("p")) == ("1", "f")
    assert table.cells_for("c.png", NAMES.of("z")) is None
    assert table.patient_of("b.png") == NAMES.of("q") and table.unused(["a.png", "b.png"]) == []


def test_lines_that_contradict_each_other_are_named_by_number_not_by_patient(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", ("pid", "ill"), [("secret-1", 0), ("secret-1", 1), ("", 1), ("x", 0), ("x", 0)])
    with pytest.raises(DataError) as found:
        read_table(path, Listed("pid", None, ("ill",)), NAMES, [])
    assert len(found.value.problems) == 2 and "t.csv:3: says of the same patient something else than line 2" in str(found.value)
    assert "secret" not in str(found.value)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"pid,ill\n\xe4,1\n", "is not UTF-8"),
        (b"pid,ill\na\0b,1\n", "NUL"),
        (b"pid,other\na,1\n", 'no column "ill"; it has: pid, other'),
        (b"pid,ill,ill\na,1,1\n", 'two columns "ill"'),
    ],
)
def test_a_table_that_cannot_be_read_says_why(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=text):
        read_table(tmp_path / "t.csv", Listed("pid", None, ("ill",)), NAMES, [])


def test_a_byte_order_mark_quotes_and_tabs_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b'\xef\xbb\xbfpid\till\n"a"\t"x, ""y"""\n')
    table = read_table(tmp_path / "t.csv", Listed("pid", None, ("ill",)), NAMES, [])
    assert table.cells_for("any", NAMES.of("a")) == ('x, "y"',)


def test_an_unknown_split_and_a_table_of_nobody(tmp_path: Path) -> None:
    path = write_table(tmp_path / "t.csv", ("pid", "part"), [("a", "train"), ("b", "holdout")])
    with pytest.raises(DataError, match="says holdout; a split is train, validation or test"):
        read_table(path, Listed("pid", None, (), "part"), NAMES, [])
    with pytest.raises(DataError, match="--id-column NAME"):
        read_table(path, Listed(None, None, (), "part"), NAMES, [])


DATES = ["1961-04-12", "12.04.1961", "4/12/61", "19610412", "1961-04", "12 April 1961", "Apr 12, 1961", "2020-01-02 10:11:12"]


@pytest.mark.parametrize("date", DATES)
def test_one_date_keeps_a_column_out(date: str) -> None:
    assert "dates never enter" in str(column_problem("seen", ["a", "", date]))


@pytest.mark.parametrize(
    "name", ["patient_name", "PatientName", "Surname", "birth_year", "DOB", "street", "e-mail", "MRN", "Geburtsdatum", "patient"]
)
def test_a_name_of_identity_keeps_a_column_out(name: str) -> None:
    assert column_problem(name, ["a", "b"]) is not None


@pytest.mark.parametrize(
    ("name", "cells"),
    [
        ("age_band", ["40-49", "80+", "<40"]),
        ("age", ["41", "63.5", "?"]),
        ("sex", ["f", "m", ""]),
        ("scanner_name", ["GE", "Siemens"]),
        ("survival_time", ["17", "23.5"]),
        ("chol", [str(number + 0.7) for number in range(1800, 2050)]),
        ("birth_cohort", ["40-49", "50-59"]),
        ("score", [str(number / 7) for number in range(500)]),
    ],
)
def test_bands_numbers_and_categories_may_enter(name: str, cells: list[str]) -> None:
    assert column_problem(name, cells) is None


def test_text_that_is_different_for_most_rows_and_record_numbers_stay_out() -> None:
    assert "points at persons" in str(column_problem("remark", [f"text {number}" for number in range(100)]))
    assert "record numbers" in str(column_problem("case", [str(70_000_000 + number) for number in range(100)]))
    assert "e-mail" in str(column_problem("contact", ["a@b.org"]))
    assert column_problem("scanner", [f"scanner {number % 3}" for number in range(100)]) is None


def test_kinds() -> None:
    assert [kind_of(cells) for cells in (["1", "?", "2.5"], ["1", "x"], ["", "?"], ["1,5"], ["inf"])] == ["number"] + ["text"] * 4
