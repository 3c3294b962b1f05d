# SPDX-License-Identifier: Apache-2.0
"""Checks of the text of tables: signs that a file was saved in another encoding than it was read in, or in another country's format."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from client.cohorts.findings import Check, Finding, Material, Severity, counted, examples

_FOLLOWS: Final = "\u0080-\u00bf" + "€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ"
"""What the second byte of a letter in UTF-8 looks like in Latin-1 and in Windows-1252."""
_MOJIBAKE: Final = re.compile(f"[ÂÃ][{_FOLLOWS}]|â€|(?:[Ä-ß][{_FOLLOWS}]){{2}}")
_COMMA: Final = re.compile(r"[+-]?\d+,\d+")
_POINT: Final = re.compile(r"[+-]?\d+\.\d+(?:[eE][+-]?\d+)?")
_DAMAGE: Final = {
    "letters of a wrong encoding (UTF-8 that was read as something else)": _MOJIBAKE,
    "the sign for a letter that could not be read": re.compile("\ufffd"),
    "a byte order mark": re.compile("\ufeff"),
    "zero bytes": re.compile("\0"),
}
_REMEDY: Final = "save the table as UTF-8 at the source and build the cohort again"


def encoding(material: Material) -> Iterable[Finding]:
    """Letters that were read in a wrong encoding, marks at the start of a file that became text, zero bytes."""
    for column, cells in _columns(material):
        for what, rows in damaged(cells).items():
            numbers = np.array(rows, dtype=np.int64)
            yield Finding(
                Severity.WARNING,
                len(rows),
                f"column {column}: {counted(len(rows), 'cell holds', 'cells hold')} {what}",
                _REMEDY,
                examples(material.images[numbers]),
            )


def damaged(cells: Sequence[str]) -> dict[str, list[int]]:
    """Kinds of damage in a column, and the rows that have it."""
    found = {what: [row for row, text in enumerate(cells) if sign.search(text)] for what, sign in _DAMAGE.items()}
    return {what: rows for what, rows in found.items() if rows}


def decimals(material: Material) -> Iterable[Finding]:
    """Columns in which some numbers have a decimal comma and others a point."""
    for column, cells in _columns(material):
        commas = [row for row, text in enumerate(cells) if _COMMA.fullmatch(text.strip())]
        points = sum(1 for text in cells if _POINT.fullmatch(text.strip()))
        if commas and (points or material.cohort.columns.get(column) == "number"):
            text = f"column {column}: {counted(len(commas), 'number has', 'numbers have')} a decimal comma, {points:,} a point"
            rows = np.array(commas, dtype=np.int64)
            yield Finding(
                Severity.ERROR, len(commas), text, "write all with a point and build the cohort again", examples(material.images[rows])
            )


def _columns(material: Material) -> Iterable[tuple[str, Sequence[str]]]:
    """The names of the columns as a column of their own, then each column's cells."""
    for name in material.manifest.cells:
        if damaged([name]):
            yield f"{name!a} (its name)", [name]
    yield from material.manifest.cells.items()


TABLE_CHECKS: tuple[tuple[str, Check], ...] = (("encoding of tables", encoding), ("decimal commas", decimals))
