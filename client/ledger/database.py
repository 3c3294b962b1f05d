# SPDX-License-Identifier: Apache-2.0
"""The ledger's SQLite file: what is committed stays committed.

One file with a rollback journal (`journal_mode=DELETE`) and `synchronous=EXTRA`. A commit ends with the deletion of the journal; with
`FULL` alone that deletion is not synced, so after a power cut the journal may come back and take an acknowledged row away again. EXTRA
syncs the folder too. One file and no shared memory, so it can be copied for a backup and lies well on any file system.

The schema has a number (`common.databases`). A file from before it was counted has the same tables and triggers; it gets the number at
its first use. A step to a further version must leave rows, chain and triggers as they are: `check_schema` looks before and after.

Locks are the kernel's and end with their process, so none is ever stale. Triggers forbid to change or delete a row, or to put one
anywhere but at the end.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from client.ledger.rows import Row
from common.databases import Schema, bring_up_to_date
from common.errors import StorageError
from common.files import locked, sync_folder
from common.privacy.charge_book import Line

LOCK_TIMEOUT_SECONDS: Final = 120.0
SCHEMA: Final = {
    "rows": "CREATE TABLE rows (number INTEGER PRIMARY KEY, content TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL, "
    "mac TEXT NOT NULL) STRICT",
    "patients": "CREATE TABLE patients (number INTEGER NOT NULL, line TEXT NOT NULL, pseudonym BLOB NOT NULL, "
    "PRIMARY KEY (number, line, pseudonym)) STRICT, WITHOUT ROWID",
    "rows_end": "CREATE TRIGGER rows_end BEFORE INSERT ON rows WHEN NEW.number IS NOT (SELECT coalesce(max(number), 0) + 1 FROM rows) "
    "BEGIN SELECT RAISE(ABORT, 'rows are added at the end'); END",
    "rows_update": "CREATE TRIGGER rows_update BEFORE UPDATE ON rows BEGIN SELECT RAISE(ABORT, 'rows are never changed'); END",
    "rows_delete": "CREATE TRIGGER rows_delete BEFORE DELETE ON rows BEGIN SELECT RAISE(ABORT, 'rows are never deleted'); END",
    "patients_end": "CREATE TRIGGER patients_end BEFORE INSERT ON patients WHEN NEW.number IS NOT (SELECT max(number) FROM rows) "
    "BEGIN SELECT RAISE(ABORT, 'patients belong to the last row'); END",
    "patients_update": "CREATE TRIGGER patients_update BEFORE UPDATE ON patients "
    "BEGIN SELECT RAISE(ABORT, 'patients are never changed'); END",
    "patients_delete": "CREATE TRIGGER patients_delete BEFORE DELETE ON patients "
    "BEGIN SELECT RAISE(ABORT, 'patients are never deleted'); END",
}
Patients = Mapping[Line, frozenset[bytes]]


class LedgerFile:
    """The file `path`, made at the first write. Nothing is held between calls, so any number of processes may use it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that nobody else writes beside; durable when the block has ended without an error.

        Raises StorageError with the path when the disk says no.
        """
        with self._errors():
            if not self.path.exists():
                self._create()
            with closing(self._connect()) as database:
                bring_up_to_date(database, VERSIONS, self.path)
                database.execute("BEGIN IMMEDIATE")
                yield database
                database.execute("COMMIT")

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection | None]:
        """One consistent view; None when there is no ledger yet."""
        with self._errors():
            if not self.path.exists():
                yield None
                return
            with closing(self._connect()) as database:
                bring_up_to_date(database, VERSIONS, self.path)
                database.execute("BEGIN")
                yield database

    def make_durable(self) -> None:
        """Sync the folder: another process may have died between its commit and its own sync."""
        with self._errors():
            sync_folder(self.path.parent)

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=rw", uri=True, timeout=LOCK_TIMEOUT_SECONDS, isolation_level=None)
        database.execute("PRAGMA synchronous=EXTRA")
        return database

    def _create(self) -> None:
        """Make the file whole beside its place, then give it its name: a ledger is there with all its triggers or not at all."""
        temporary = self.path.with_name(f".{self.path.name}.new")
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            if self.path.exists():
                return
            for leftover in (temporary, temporary.with_name(temporary.name + "-journal")):
                leftover.unlink(missing_ok=True)
            os.close(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            with closing(LedgerFile(temporary)._connect()) as database:
                for statement in ("BEGIN IMMEDIATE", *SCHEMA.values(), f"PRAGMA user_version = {VERSIONS.version}", "COMMIT"):
                    database.execute(statement)
            temporary.replace(self.path)
            sync_folder(self.path.parent)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"cannot use {self.path}: {error}; check free space and permissions, or restore its backup") from error


def add_row(database: sqlite3.Connection, row: Row, patients: Patients) -> None:
    """Write one row, and the patients that belong to it."""
    database.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", (row.number, row.content, row.previous, row.hash, row.mac))
    lines = [(row.number, line.value, pseudonym) for line, pseudonyms in patients.items() for pseudonym in sorted(pseudonyms)]
    database.executemany("INSERT INTO patients VALUES (?, ?, ?)", lines)


def rows_after(database: sqlite3.Connection, number: int) -> Iterable[Row]:
    """All rows after row `number`, in order."""
    return (
        Row(*values)
        for values in database.execute("SELECT number, content, previous, hash, mac FROM rows WHERE number > ? ORDER BY number", (number,))
    )


def hash_of(database: sqlite3.Connection, number: int) -> str | None:
    """The stored hash of one row; None if there is no such row."""
    found = database.execute("SELECT hash FROM rows WHERE number = ?", (number,)).fetchone()
    return None if found is None else str(found[0])


def patients_of(database: sqlite3.Connection, number: int) -> dict[Line, frozenset[bytes]]:
    """The patients that came with one row."""
    found: dict[Line, set[bytes]] = {}
    for line, pseudonym in database.execute("SELECT line, pseudonym FROM patients WHERE number = ?", (number,)):
        found.setdefault(Line(line), set()).add(bytes(pseudonym))
    return {line: frozenset(pseudonyms) for line, pseudonyms in found.items()}


def check_integrity(database: sqlite3.Connection) -> None:
    """Raises StorageError when SQLite finds its own structures damaged."""
    found = [str(line) for (line,) in database.execute("PRAGMA integrity_check(5)")]
    if found != ["ok"]:
        raise StorageError(f"ledger: {'; '.join(found)}; restore it from its backup")


def check_schema(database: sqlite3.Connection) -> None:
    """Raises StorageError when a table or a trigger is missing or was changed."""
    found = dict(database.execute("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
    wrong = sorted(name for name in {*found, *SCHEMA} if found.get(name) != SCHEMA.get(name))
    if wrong:
        raise StorageError(f"ledger: {', '.join(wrong)} is missing or was changed; restore the ledger from its backup")


def _is_whole(database: sqlite3.Connection, _version: int) -> None:
    check_schema(database)


VERSIONS: Final = Schema(steps=((),), check=_is_whole)
"""Version 1 is what there was before the schema had a number; so the first step changes nothing but the number."""
