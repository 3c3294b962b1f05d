# SPDX-License-Identifier: Apache-2.0
"""From the columns of a table to features: by the public constants of the study, and by nothing else.

    number      (value - centre) / scale, cut to ±limit
    flag        -½ or ½ (no or yes), 0 where missing unless the study says otherwise
    category    a feature for each listed value, 1 for the one that stands there, else 0; all 0 where missing
    missing: indicator    one more feature, 1 where the value is missing; the value itself is the study's `fill`

A row depends on that row alone: no mean, range or category is taken from the data, so the features cost no privacy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common import study
from common.data.cohort import FloatArray
from common.errors import DataError
from common.study_columns import TableColumn

MISSING_WORDS = frozenset({"", "?", "na", "n/a", "nan", "null", "none"})
YES = frozenset({"1", "true", "yes", "y", "t"})
NO = frozenset({"0", "false", "no", "n", "f"})
MOST_NAMED = 5
REFERENCE_SEED = 20240229

Column = npt.NDArray[Any]
Columns = Mapping[str, Column]
Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Texts = npt.NDArray[np.str_]


@dataclass(frozen=True)
class ReadColumn:
    """A column of a table, read as the study says.

    `values` [N] are float64 (number, flag: 0 or 1; NaN where missing) or text (category; "" where missing).
    """

    name: str
    settings: TableColumn
    values: Column
    missing: Flags

    @property
    def features(self) -> Numbers:
        """The column's features float64 [N, F'] in the order of `TableColumn.feature_names`."""
        parts = self._slots() if self.settings.kind == "category" else [self._scaled()]
        if self.settings.missing == "indicator":
            parts.append(self.missing.astype(np.float64))
        return np.stack(parts, axis=1)

    def _scaled(self) -> Numbers:
        rules = self.settings
        centre, scale = (0.5, 1.0) if rules.kind == "flag" else (rules.centre, rules.scale)
        filled = np.where(self.missing, centre if rules.fill is None else rules.fill, self.values)
        cut: Numbers = np.clip((filled - centre) / scale, -rules.limit, rules.limit)
        return cut

    def _slots(self) -> list[Numbers]:
        slots = [(self.values == value) & ~self.missing for value in canonical_values(self.settings)]
        if self.settings.unlisted == "own":
            slots.append(~np.any(slots, axis=0) & ~self.missing)
        return [slot.astype(np.float64) for slot in slots]


def features_of(columns: Columns, data: study.Data) -> FloatArray:
    """Features float32 [N, F] in the order of `data.feature_names`, from columns [N] of text or numbers (NaN: missing) by name.

    A row with a missing value in a column that says `missing: drop` is NaN in all features; `checks.checked` leaves it out. Raises
    DataError with every problem of every column.
    """
    return stacked(read_columns(columns, data))


def stacked(read: list[ReadColumn]) -> FloatArray:
    """The features float32 [N, F] of columns that were read; rows to be left out are NaN."""
    features: FloatArray = np.concatenate([column.features for column in read], axis=1).astype(np.float32)
    features[np.any([column.missing & (column.settings.missing == "drop") for column in read], axis=0)] = np.nan
    return features


def read_columns(columns: Columns, data: study.Data) -> list[ReadColumn]:
    """The columns of the study in the order of their names. Raises DataError with every problem: absent, unreadable, missing, unlisted."""
    absent = [name for name in sorted(data.columns) if name not in columns]
    read = [read_column(name, columns[name], data.columns[name]) for name in sorted(data.columns) if name not in absent]
    problems = [
        f"no column {name!r} (data.columns); the table has: {', '.join(map(str, columns)) or 'none'}; name the right one" for name in absent
    ]
    problems += [problem for column in read for problem in _problems_of(column, columns[column.name])]
    if problems:
        raise DataError(problems)
    return read


def read_column(name: str, column: Column, settings: TableColumn) -> ReadColumn:
    """Read one column; what cannot be read is NaN or unlisted and not `missing`."""
    texts = canonical_texts(column)
    missing = _is_missing(texts, settings)
    if settings.kind == "category":
        return ReadColumn(name, settings, np.where(missing, "", texts), missing)
    values = flags_of(texts) if settings.kind == "flag" else numbers_of(texts)
    return ReadColumn(name, settings, np.where(missing, np.nan, values), missing)


def canonical_texts(column: Column) -> Texts:
    """The values as text without outer spaces, whole numbers without a decimal part: `1`, `1.0` and ` 1 ` are one value."""
    texts = np.char.strip(column.astype(np.str_))
    different, where = np.unique(texts, return_inverse=True)
    return np.array([canonical(text) for text in different.tolist()], dtype=np.str_)[where] if len(texts) else texts


def canonical(text: str) -> str:
    """One value as `canonical_texts` writes it."""
    number = _number(text)
    return str(int(number)) if number.is_integer() and abs(number) < 2**53 else text


def canonical_values(settings: TableColumn) -> list[str]:
    """The listed categories as `canonical_texts` writes them."""
    return [canonical(value.strip()) for value in settings.values]


def numbers_of(texts: Texts) -> Numbers:
    """Numbers float64 [N] with a decimal point; NaN where there is none."""
    different, where = np.unique(texts, return_inverse=True)
    return np.array([_number(text) for text in different.tolist()], dtype=np.float64)[where] if len(texts) else np.empty(0)


def flags_of(texts: Texts) -> Numbers:
    """1 for yes, 0 for no, NaN for anything else; capitals do not matter."""
    small = np.char.lower(texts)
    return np.where(np.isin(small, list(YES)), 1.0, np.where(np.isin(small, list(NO)), 0.0, np.nan))


def _number(text: str) -> float:
    """A finite number, or NaN. Python also reads `1_000` and `infinity`, which are none in a table."""
    try:
        number = float(text)
    except ValueError:
        return np.nan
    return number if np.isfinite(number) and "_" not in text else np.nan


def _is_missing(texts: Texts, settings: TableColumn) -> Flags:
    codes = [canonical(code.strip()) for code in settings.missing_codes]
    missing = np.isin(np.char.lower(texts), list(MISSING_WORDS)) | np.isin(texts, codes)
    return missing & ~np.isin(texts, canonical_values(settings)) if settings.kind == "category" else missing


def _problems_of(column: ReadColumn, source: Column) -> Iterator[str]:
    """What is wrong with a column, a line each with its remedy."""
    rules, where = column.settings, f"column {column.name!r}"
    if rules.missing == "refuse" and column.missing.any():
        yield (
            f"{where}: {np.count_nonzero(column.missing)} values are missing ({_rows(column.missing)}); say "
            f"data.columns.{column.name}.missing: indicator, or drop to leave these rows out"
        )
    strange = _strange(column)
    if not strange.any():
        return
    found = ", ".join(repr(text) for text in np.unique(source[strange].astype(np.str_))[:MOST_NAMED].tolist())
    what, remedy = {
        "number": ("is no number", "write numbers with a decimal point and without units, or name the text in missing_codes"),
        "flag": ("is neither no nor yes (0 or 1)", "correct the values, or make the column a category"),
        "category": ("is not in the study's list", f"add it to data.columns.{column.name}.values, or say unlisted: own"),
    }[rules.kind]
    yield f"{where}: {np.count_nonzero(strange)} values ({_rows(strange)}) of which each {what}: {found}; {remedy}"


def _strange(column: ReadColumn) -> Flags:
    """Values that are there but cannot be used."""
    if column.settings.kind != "category":
        strange: Flags = np.isnan(column.values) & ~column.missing
        return strange
    listed = np.isin(column.values, canonical_values(column.settings)) | (column.settings.unlisted == "own")
    return ~listed & ~column.missing


def _rows(chosen: Flags) -> str:
    rows = np.flatnonzero(chosen)
    text = ", ".join(str(row) for row in rows[:MOST_NAMED])
    return f"row{'s' if len(rows) > 1 else ''} {text}{', …' if len(rows) > MOST_NAMED else ''}"


def reference_features(data: study.Data, rows: int) -> FloatArray:
    """Made-up rows of a study's table, float32 [rows, F], always the same: numbers normal about their centre, all categories as likely.

    Public like the study itself; they show what a model says without asking a patient.
    """
    random = np.random.default_rng(REFERENCE_SEED)
    parts = [_made_up(data.columns[name], rows, random) for name in sorted(data.columns)]
    features: FloatArray = np.concatenate(parts, axis=1).astype(np.float32)
    return features


def _made_up(settings: TableColumn, rows: int, random: np.random.Generator) -> Numbers:
    drawn = random.normal(size=rows)
    if settings.kind == "category":
        slots = len(settings.values) + (settings.unlisted == "own")
        values = np.eye(slots)[random.integers(slots, size=rows)]
    elif settings.kind == "flag":
        values = np.where(drawn > 0, 0.5, -0.5)[:, None]
    else:
        values = np.clip(drawn, -settings.limit, settings.limit)[:, None]
    return np.concatenate([values, np.zeros((rows, 1))], axis=1) if settings.missing == "indicator" else values
