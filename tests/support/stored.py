# SPDX-License-Identifier: Apache-2.0
"""Databases as earlier releases left them: text dumps in `old_databases`, NAME-VERSION.sql, and the newest of each."""

import sqlite3
from contextlib import closing
from pathlib import Path

FOLDER = Path(__file__).with_name("old_databases")
LEDGER_HEAD = "5f3bd4b89c9be627d77202c3762fdf763631246906954b76a9cb2fac2889b0e6"
"""Hash of row 8, the last one of the stored ledgers; they were written with the key of `tests.client.ledger.support`."""


def versions_of(name: str) -> list[int]:
    """The versions that are stored of one database."""
    return sorted(int(path.stem.rpartition("-")[2]) for path in FOLDER.glob(f"{name}-*.sql"))


def put(name: str, version: int, path: Path) -> Path:
    """Make the database in `path` as that version left it."""
    with closing(sqlite3.connect(path)) as database:
        database.executescript((FOLDER / f"{name}-{version}.sql").read_text(encoding="utf-8"))
    path.chmod(0o600)
    return path


def number_in(path: Path) -> int:
    """The number of its schema."""
    with closing(sqlite3.connect(path)) as database:
        return int(database.execute("PRAGMA user_version").fetchone()[0])
