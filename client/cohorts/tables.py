# SPDX-License-Identifier: Apache-2.0
"""The hospital's table of labels: a CSV file whose lines belong to patients, to files, or to both.

    a line with a patient id          says something of all files of that patient
    a line with a file's path         says something of that file, and whose it is when the id stands there too

Only the listed columns are kept, and ids only as pseudonyms. A cell that a file's own line leaves empty is taken from its patient's line.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final

from client.cohorts.columns import column_problem
from client.pseudonyms import Pseudonyms
from common.errors import DataError

SPLIT_NAMES: Final = {"train": "train", "training": "train", "validation": "validation", "val": "validation", "valid": "validation"} | {
    "test": "test",
    "testing": "test",
}
_DELIMITERS: Final = ",;\t"
_MOST_NAMED: Final = 5


@dataclass(frozen=True)
class Listed:
    """Names of the columns that matter: whose a line is, and what of it enters the cohort."""

    identifier: str | None = None
    path: str | None = None
    labels: tuple[str, ...] = ()
    split: str | None = None
    columns: tuple[str, ...] = ()

    @property
    def entering(self) -> tuple[str, ...]:
        """Columns whose cells enter, in the order of the manifest: labels, split, further columns."""
        return (*self.labels, *((self.split,) if self.split else ()), *self.columns)


@dataclass(frozen=True)
class Line:
    """One line: its number in the file, whose it is (a pseudonym, a file), and the cells that enter, in the order of `Listed.entering`."""

    number: int
    patient: str | None
    file: str | None
    cells: tuple[str, ...]


@dataclass
class LabelTable:
    """The lines of a table by what they belong to. `name` is the file's name, for messages."""

    name: str
    listed: Listed
    by_patient: dict[str, Line] = field(default_factory=dict)
    by_file: dict[str, Line] = field(default_factory=dict)
    used: set[int] = field(default_factory=set)

    def patient_of(self, file: str) -> str | None:
        """Whose the file is, as far as the table says."""
        line = self.by_file.get(file)
        return None if line is None else line.patient

    def cells_for(self, file: str, patient: str) -> tuple[str, ...] | None:
        """What the table says of a file of a patient; None when it has no line for either. Remembers that the lines were used."""
        lines = [line for line in (self.by_file.get(file), self.by_patient.get(patient)) if line is not None]
        self.used.update(line.number for line in lines)
        return _merged(lines) if lines else None

    def unused(self, files: Iterable[str]) -> list[int]:
        """Numbers of the lines that say something of a file that is not there, or of a patient of whom no file can be used."""
        known = set(files)
        lines = [*self.by_patient.values(), *(line for line in self.by_file.values() if line.file not in known)]
        return sorted({line.number for line in lines} - self.used)


def _merged(lines: Sequence[Line]) -> tuple[str, ...]:
    """For each column the first cell that is filled."""
    return tuple(next((cell for cell in cells if cell), "") for cells in zip(*(line.cells for line in lines), strict=True))


def read_lines(path: Path, listed: Listed, pseudonyms: Pseudonyms) -> list[Line]:
    """Every line that is not empty. Raises DataError with all problems: encoding, columns, cells that must not enter, splits."""
    header, lines = _read_text(path)
    wanted = [name for name in (listed.identifier, listed.path, *listed.entering) if name is not None]
    problems = [f'{path.name}: has no column "{name}"; it has: {", ".join(header)}' for name in wanted if name not in header]
    problems += [f'{path.name}: has two columns "{name}"; rename one' for name in dict.fromkeys(wanted) if header.count(name) > 1]
    problems += [f'"{name}" is named twice; name each column once' for name in dict.fromkeys(wanted) if wanted.count(name) > 1]
    if problems:
        raise DataError(problems)
    place = {name: header.index(name) for name in wanted}
    found = [_line(number, cells, place, listed, pseudonyms) for number, cells in lines]
    problems = entering_problems(listed, [line.cells for line in found], path.name)
    if problems:
        raise DataError(problems)
    return [with_split(line, listed) for line in found]


def entering_problems(listed: Listed, rows: Sequence[tuple[str, ...]], where: str) -> list[str]:
    """Columns that must not enter, and splits that are none."""
    problems = []
    for number, name in enumerate(listed.entering):
        cells = [row[number] for row in rows]
        if name != listed.split:
            problem = column_problem(name, cells)
            problems += [f"{where}: {problem}"] if problem else []
        elif unknown := sorted({cell for cell in cells if cell and cell.lower() not in SPLIT_NAMES})[:_MOST_NAMED]:
            problems.append(f'{where}: column "{name}" says {", ".join(unknown)}; a split is train, validation or test')
    return problems


def read_table(path: Path, listed: Listed, pseudonyms: Pseudonyms, files: Sequence[str]) -> LabelTable:
    """The table of labels for `files` (names relative to the folder of images). Raises DataError with all problems."""
    if listed.identifier is None and listed.path is None:
        raise DataError(f"{path.name}: say whose its lines are with --id-column NAME (patient), --path-column NAME (file), or both")
    table, known, problems = LabelTable(path.name, listed), _Names(files), []
    for line in read_lines(path, listed, pseudonyms):
        line = line if line.file is None else Line(line.number, line.patient, known.of(line.file), line.cells)
        problems += _place(table, line)
    if problems:
        more = len(problems) - _MOST_NAMED
        raise DataError(problems[:_MOST_NAMED] + ([f"{path.name}: and {more} more lines with such problems"] if more > 0 else []))
    return table


def _place(table: LabelTable, line: Line) -> list[str]:
    """Put a line where it belongs; what is wrong with it."""
    lines, key = (table.by_file, line.file) if line.file else (table.by_patient, line.patient)
    if key is None:
        return [f"{table.name}:{line.number}: has no patient id and no file; fill one of them"]
    earlier = lines.setdefault(key, line)
    if earlier.cells != line.cells or (line.file and earlier.patient != line.patient):
        whose = "file" if line.file else "patient"
        return [f"{table.name}:{line.number}: says of the same {whose} something else than line {earlier.number}; correct one of them"]
    table.used.update({line.number} if earlier is not line else ())  # the same line once more says nothing new
    return []


class _Names:
    """Files by the ways in which a table may write them: relative to the folder of images, or by a path that ends so."""

    def __init__(self, files: Sequence[str]) -> None:
        self._known = frozenset(files)

    def of(self, cell: str) -> str:
        """The file that a cell names: the cell itself, or as much of its end as is the name of a file."""
        name = str(PurePosixPath(cell.replace("\\", "/")))
        parts = PurePosixPath(name).parts
        ends = ("/".join(parts[start:]) for start in range(len(parts)))
        return next((end for end in ends if end in self._known), name)


def _line(number: int, cells: Sequence[str], place: dict[str, int], listed: Listed, pseudonyms: Pseudonyms) -> Line:
    def cell(name: str | None) -> str:
        return cells[place[name]].strip() if name is not None and place[name] < len(cells) else ""

    identifier = cell(listed.identifier)
    return Line(
        number,
        pseudonyms.of(identifier) if identifier else None,
        cell(listed.path) or None,
        tuple(cell(name) for name in listed.entering),
    )


def with_split(line: Line, listed: Listed) -> Line:
    """The line with its split named `train`, `validation` or `test`."""
    if listed.split is None:
        return line
    place = len(listed.labels)
    name = SPLIT_NAMES.get(line.cells[place].lower(), "")
    return Line(line.number, line.patient, line.file, (*line.cells[:place], name, *line.cells[place + 1 :]))


def _read_text(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header, and the lines that are not empty with their numbers. The delimiter is the one that splits the header most."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            delimiter = max(_DELIMITERS, key=first.count)
            file.seek(0)
            lines = csv.reader(file, delimiter=delimiter)
            header = [name.strip() for name in next(lines, [])]
            rows = [(lines.line_num, cells) for cells in lines if any(cell.strip() for cell in cells)]
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path.name}: is not UTF-8 text (byte {error.start:,}); save it as CSV with UTF-8, not with a Windows code page"
        ) from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{path.name}: cannot be read as a CSV table ({error}); save it as CSV with UTF-8") from error
    spoilt = [number for number, cells in rows if any("\0" in cell for cell in cells)]
    if spoilt:
        raise DataError(f"{path.name}:{spoilt[0]}: {len(spoilt)} lines hold NUL characters; save it as CSV with UTF-8")
    return header, rows
