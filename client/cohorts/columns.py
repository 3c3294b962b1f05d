# SPDX-License-Identifier: Apache-2.0
"""Which columns of a table may enter a cohort: none that names a person, and never a date.

Judged by the column's name and by its cells. A band of ages (`40-49`, `80+`) or a number is fine; a date, a name, an address, or text that
is different for nearly everybody is not. The rules see what looks like identity, not everything that is: what enters is what IT lists.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, Literal

from common.data.cohort_file import MISSING, OWN_COLUMNS

Kind = Literal["number", "text"]
_IDENTITY_TEXT: Final = """
    name surname forename firstname lastname fullname patientname nachname vorname dob birth birthday birthdate dateofbirth born
    geburtsdatum geburtstag address street postcode zip zipcode phone telephone mobile email mail ssn mrn nhs insurance passport accession
"""
_THINGS_TEXT: Final = "scanner device hospital site station model manufacturer protocol series study ward machine class label"
_IDENTITY: Final = frozenset(_IDENTITY_TEXT.split())
_NAMES_OF_THINGS: Final = frozenset(_THINGS_TEXT.split())
_DATE_WORDS: Final = frozenset(["date", "datum", "datetime", "timestamp", "time", "dates"])
_WORD: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_MONTH: Final = r"(jan|feb|mar|apr|may|mai|jun|jul|aug|sep|oct|okt|nov|dec|dez)[a-z]*"
_YEAR, _MONTH_NUMBER, _DAY = r"(1[89]|20)[0-9]{2}", r"(0?[1-9]|1[0-2])", r"(0?[1-9]|[12][0-9]|3[01])"
_DATE: Final = re.compile(
    rf"{_YEAR}[-/.]{_MONTH_NUMBER}[-/.]{_DAY}([ T].*)?|{_YEAR}[-/](0[1-9]|1[0-2])"  # 1961-04-12, 1961-04
    rf"|{_DAY}[-/.]{_DAY}[-/.]((1[89]|20)?[0-9]{{2}})( .*)?"  # 12.04.1961, 4/12/61
    r"|(19|20)[0-9]{2}(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])"  # 19610412
    rf"|[0-9]{{1,2}}[. -]*{_MONTH}[. ,-]*([0-9]{{2}}|[0-9]{{4}})"  # 12 April 1961
    rf"|{_MONTH}[. ,-]*[0-9]{{1,2}}[. ,-]+[0-9]{{2,4}}",  # April 12, 1961
    re.IGNORECASE,
)
_EMAIL: Final = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_LONG_NUMBER_DIGITS: Final = 8
_FEW_VALUES: Final = 64
"""Text with so many different cells, most of them unlike all others, points at persons."""


def column_problem(name: str, cells: Sequence[str]) -> str | None:
    """Why the column must not enter, as `reason; remedy`; None when it may. `cells` [R] are its cells."""
    if name in OWN_COLUMNS:
        return f'column "{name}": a cohort has a column of its own by that name; rename it in the table'
    filled = [cell for cell in cells if cell not in MISSING]
    dates = sum(_DATE.fullmatch(cell) is not None for cell in filled)
    if dates:
        return f'column "{name}": {dates} of its cells look like dates, and dates never enter a cohort; use an age band or a number instead'
    numeric = bool(filled) and kind_of(filled) == "number"
    return _named_after(name, numeric=numeric, bands=_are_bands(filled)) or _identifying(name, filled, numeric=numeric)


def kind_of(cells: Sequence[str]) -> Kind:
    """`number` when every cell that is filled is a finite number; a column without any filled cell is text."""
    filled = [cell for cell in cells if cell not in MISSING]
    return "number" if filled and all(_is_number(cell) for cell in filled) else "text"


def _named_after(name: str, *, numeric: bool, bands: bool) -> str | None:
    words = {word.lower() for word in _WORD.findall(name)} | {name.lower()}
    if words & _IDENTITY and not (words & _NAMES_OF_THINGS and "name" in words) and not bands:
        return f'column "{name}": its name says that it identifies persons; leave it out, or use a band or a category under another name'
    if words & _DATE_WORDS and not numeric and not bands:
        return f'column "{name}": its name says that it holds dates, and dates never enter a cohort; use an age band or a number instead'
    return None


def _identifying(name: str, filled: Sequence[str], *, numeric: bool) -> str | None:
    if any(_EMAIL.fullmatch(cell) for cell in filled):
        return f'column "{name}": holds e-mail addresses; leave it out'
    distinct = len(set(filled))
    if distinct <= _FEW_VALUES or distinct * 2 <= len(filled):
        return None
    if not numeric:
        how_many = f"{distinct} of {len(filled)}"
        return f'column "{name}": its text is different for most rows ({how_many}), so it points at persons; use a few categories'
    if all(len(cell) >= _LONG_NUMBER_DIGITS and cell.isdigit() for cell in filled):
        return f'column "{name}": holds long numbers that are different for most rows, as record numbers are; leave it out'
    return None


def _are_bands(filled: Sequence[str]) -> bool:
    return bool(filled) and all(re.fullmatch(r"[<>≥≤]?=? ?[0-9]{1,3}( ?(-|–|to) ?[0-9]{1,3}|\+)?", cell) for cell in filled)


def _is_number(cell: str) -> bool:
    try:
        return abs(float(cell)) < float("inf")
    except ValueError:
        return False
