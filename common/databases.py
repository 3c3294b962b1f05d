# SPDX-License-Identifier: Apache-2.0
"""Every SQLite database of ours knows its version (`PRAGMA user_version`), and is brought up to date when it is opened.

A schema is a list of steps; step n takes version n to version n + 1, and version 0 is an empty file or one from before versions were
counted. All steps and the new number are one transaction: after a crash the file is old or new, never between. A database that a newer
program wrote is refused, untouched. Steps that were released are never edited; a change is a further step.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from common.errors import StorageError


def _any_content(_database: sqlite3.Connection, _version: int) -> None:
    return


@dataclass(frozen=True)
class Schema:
    """`steps` are the statements that lead from one version to the next. `check` looks at a database of that version, before a step and
    after the last, and raises StorageError for one that is not as it has to be."""

    steps: tuple[tuple[str, ...], ...]
    check: Callable[[sqlite3.Connection, int], None] = _any_content

    @property
    def version(self) -> int:
        """The version that this program reads and writes."""
        return len(self.steps)


def statements(script: str) -> tuple[str, ...]:
    """The statements of a script without triggers."""
    return tuple(part.strip() for part in script.split(";") if part.strip())


def bring_up_to_date(database: sqlite3.Connection, schema: Schema, path: Path) -> None:
    """Take a database to the version of `schema`. `database` must be in autocommit mode (`isolation_level=None`).

    Raises StorageError when it is newer than this program, sqlite3.Error when it cannot be written.
    """
    if _version(database, schema, path) == schema.version:
        return
    database.execute("BEGIN IMMEDIATE")
    try:
        for number in range(_version(database, schema, path), schema.version):  # somebody else may have been faster
            schema.check(database, number)
            for statement in schema.steps[number]:
                database.execute(statement)
        schema.check(database, schema.version)
        database.execute(f"PRAGMA user_version = {schema.version}")
        database.execute("COMMIT")
    except BaseException:
        if database.in_transaction:
            database.execute("ROLLBACK")
        raise


def _version(database: sqlite3.Connection, schema: Schema, path: Path) -> int:
    found = int(database.execute("PRAGMA user_version").fetchone()[0])
    if not 0 <= found <= schema.version:
        raise StorageError(
            f"{path}: was written by a newer Wardround (its schema is number {found}, this program knows {schema.version}); install that "
            "version again, or restore a backup that was made before the upgrade"
        )
    return found
