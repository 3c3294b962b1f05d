# SPDX-License-Identifier: Apache-2.0
"""Reader of tables in CSV files (`data.source: csv`): one file, or a folder in which each file is one real site.

A file is UTF-8 text with one line for each row; the first line names the columns unless the study does (`data.column_names`). The study
says which column is the label, which the patient, which (if any) an official split, and which are features. A column that it does not
name never enters. In a folder, the part of the file names in which they differ is the column `site`: the natural sites.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

import numpy as np

from common import study
from common.data.cohort import ByteArray, Split
from common.data.npz import no_patient_ids
from common.data.sources import Column, RawTable, file_sha256, no_images, required_path
from common.data.table_features import MISSING_WORDS, canonical_texts, numbers_of, read_columns, stacked
from common.data.table_features import features_of as features_of
from common.errors import DataError

SUFFIXES = (".csv", ".tsv", ".data")
SITE = "site"
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t"}
MAX_FILE_BYTES = 1 << 30
MOST_NAMED = 5
SPLIT_WORDS = {"train": Split.TRAIN, "training": Split.TRAIN, "validation": Split.VALIDATION, "val": Split.VALIDATION, "test": Split.TEST}
_NAME_SEPARATORS = " ._-"

Rows = list[list[str]]


@dataclass(frozen=True)
class TextTable:
    """The cells of a file: `names` [C] and `rows` [N][C], all text; `stem` is the file's part of the site names."""

    where: str
    stem: str
    names: tuple[str, ...]
    rows: Rows


class CsvReader:
    """`data.source: csv`."""

    def fingerprint(self, data: study.Data, path: Path | None) -> str:
        """SHA-256 of the file, or of the names and contents of those in a folder."""
        files = files_of(required_path(data.source, path))
        if len(files) == 1:
            return file_sha256(files[0])
        digest = hashlib.sha256()
        for file in files:
            digest.update(f"{file.name}\0{file_sha256(file)}\n".encode())
        return digest.hexdigest()

    def read(self, data: study.Data, path: Path | None) -> RawTable:
        """All rows of all files. Raises DataError with every problem found."""
        path = required_path(data.source, path)
        files = files_of(path)
        tables = [
            read_text_table(file, stem, data) for file, stem in zip(files, differing_parts([file.stem for file in files]), strict=True)
        ]
        columns = joined(tables, data)
        read = read_columns(columns, data)
        facts = {column.name: column.values for column in read}
        if len(tables) > 1:
            facts[SITE] = np.array([table.stem for table in tables for _ in table.rows])
        return RawTable(
            where=path.name,
            images=no_images(len(columns[data.label_column])),
            labels=labels_of(columns[data.label_column]),
            patient_ids=_patient_ids(tables, columns, data),
            split=None if data.split_column is None else split_of(columns[data.split_column]),
            columns=facts,
            natural_sites=SITE if len(tables) > 1 else None,
            features=stacked(read),
        )


def files_of(path: Path) -> list[Path]:
    """The file itself, or the tables in a folder, by name. Raises DataError when there is none."""
    if not path.is_dir():
        return [path]
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES and file.is_file())
    if not files:
        raise DataError(f"{path.name}: no table in this folder; put files there whose names end in {', '.join(SUFFIXES)}")
    return files


def differing_parts(stems: Sequence[str]) -> list[str]:
    """The words in which names differ: `processed.cleveland`, `processed.va` are `cleveland`, `va`. A single name stays as it is."""
    if len(stems) < 2:
        return list(stems)
    start = _common_start(min(stems), max(stems))
    cut = max((start.rfind(letter) + 1 for letter in _NAME_SEPARATORS), default=0)
    return [stem[cut:] for stem in stems]


def _common_start(first: str, last: str) -> str:
    """The letters with which both begin; of the first and last of sorted names, with which all begin."""
    return "".join(letter for letter, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False)))


def read_text_table(file: Path, stem: str, data: study.Data) -> TextTable:
    """The cells of one file. Raises DataError when it is no such table: not UTF-8, no rows, lines of unequal length, names twice."""
    text = _text_of(file)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=SEPARATORS[data.separator], strict=True) if any(row)]
    except csv.Error as error:
        raise DataError(f"{file.name}: no CSV table ({error}); write it anew from the program that it comes from") from error
    names = data.column_names or tuple(cell.strip() for cell in (rows.pop(0) if rows else ()))
    problems = _shape_problems(names, rows, data)
    if problems:
        raise DataError([f"{file.name}: {problem}" for problem in problems])
    return TextTable(file.name, stem, names, rows)


def _text_of(file: Path) -> str:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{file.name}: larger than {MAX_FILE_BYTES:,} bytes; split it, or make a cohort of it")
        return file.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{file.name}: cannot be read ({error.strerror}); check its permissions") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file.name}: is not UTF-8 text (byte {error.start}); save it as CSV UTF-8") from error


def _shape_problems(names: Sequence[str], rows: Rows, data: study.Data) -> list[str]:
    problems = [] if rows else ["has no rows; give at least one line of values"]
    if len(set(names)) < len(names):
        problems.append(f"a column name stands twice ({_twice(names)}); rename one, or name the columns in data.column_names")
    torn = [number for number, row in enumerate(rows, 1 if data.column_names else 2) if len(row) != len(names)]
    if torn:
        lines = ", ".join(map(str, torn[:MOST_NAMED])) + (", …" if len(torn) > MOST_NAMED else "")
        problems.append(
            f"{len(torn)} lines ({lines}, without empty ones) do not have {len(names)} values; check data.separator ({data.separator}), "
            "data.column_names, and values that hold a separator without quotes"
        )
    return problems


def _twice(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in sorted({name for name in names if names.count(name) > 1})[:MOST_NAMED])


def joined(tables: Sequence[TextTable], data: study.Data) -> dict[str, Column]:
    """The columns that the study names, text [N], one file after the other. Raises DataError naming each that a file lacks."""
    special = {data.label_column: "label_column"}
    if not data.one_image_one_patient:
        special[data.patient_key] = "patient_key"
    if data.split_column is not None:
        special[data.split_column] = "split_column"
    problems = [_no_column(table, name, key) for table in tables for name, key in special.items() if name not in table.names]
    if len(tables) > 1 and SITE in special | data.columns:
        problems.append(f"{SITE} is a column of the study and what the files of a folder stand for; rename the column, or give one file")
    problems += [_no_column(table, name, "columns") for table in tables for name in sorted(data.columns) if name not in table.names]
    if problems:
        raise DataError(problems)
    wanted = [*special, *data.columns]
    return {name: np.array([row[table.names.index(name)] for table in tables for row in table.rows]) for name in wanted}


def _no_column(table: TextTable, name: str, key: str) -> str:
    found = f"{table.where}: no column {name!r} (data.{key}); the file has: {', '.join(table.names)}"
    return no_patient_ids(found) if key == "patient_key" else f"{found}; name the right one, or give data.column_names"


def _patient_ids(tables: Sequence[TextTable], columns: dict[str, Column], data: study.Data) -> Column:
    """The ids. Where each row is a patient, its number in the file, whatever is left out later, behind its site if there are some.

    Not the name of a single file: renamed, it would make new patients of old ones, with a fresh budget.
    """
    if not data.one_image_one_patient:
        return columns[data.patient_key]
    prefixes = [table.stem if len(tables) > 1 else "row" for table in tables]
    return np.array([f"{prefix}-{number:08d}" for prefix, table in zip(prefixes, tables, strict=True) for number in range(len(table.rows))])


def labels_of(column: Column) -> Column:
    """Labels int64 [N] where all are whole numbers, else as they are (names of classes). Raises DataError where one is missing."""
    texts = canonical_texts(column)
    missing = np.isin(np.char.lower(texts), list(MISSING_WORDS))
    if missing.any():
        rows = ", ".join(map(str, np.flatnonzero(missing)[:MOST_NAMED]))
        raise DataError(f"{np.count_nonzero(missing)} rows have no label (rows {rows}); give each its label, or take them out of the table")
    numbers = numbers_of(texts)
    is_whole = np.isfinite(numbers) & (numbers == np.round(numbers))
    return numbers.astype(np.int64) if is_whole.all() else texts


def split_of(column: Column) -> ByteArray:
    """The official split uint8 [N] of `Split` from its words. Raises DataError for any other."""
    words = np.char.lower(np.char.strip(column.astype(np.str_)))
    unknown = np.unique(words[~np.isin(words, list(SPLIT_WORDS))])
    if len(unknown):
        found = ", ".join(repr(word) for word in unknown[:MOST_NAMED].tolist())
        raise DataError(f"the split column says {found}; write train, validation or test in each row")
    return np.array([SPLIT_WORDS[word] for word in words.tolist()], dtype=np.uint8)
