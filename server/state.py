# SPDX-License-Identifier: Apache-2.0
"""The coordinator's database: one SQLite file for several processes (gateway, executor, ServerApps, commands).

Each table has one module that reads and writes it: `invitation`, `site`, `site_certificate` and `retired_key` `server.sites`, `offer` and
`approval` `server.offers`, `run` `server.run_registry`, `egress_receipt` `server.egress_receipts`, `addressed` and
`push_session` `server.gateway.addressed`. The schema has a number and is brought up to date at the first use (`common.databases`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.databases import Schema, bring_up_to_date, statements
from common.errors import StorageError

_FIRST = """
CREATE TABLE IF NOT EXISTS invitation (
    site TEXT NOT NULL, token_sha256 TEXT PRIMARY KEY, expires REAL NOT NULL, request_sha256 TEXT
);
CREATE TABLE IF NOT EXISTS site (
    name TEXT PRIMARY KEY, status TEXT NOT NULL CHECK (status IN ('requested', 'approved', 'revoked')),
    node_key TEXT NOT NULL UNIQUE, tls_key TEXT NOT NULL, signing_key TEXT NOT NULL, exchange_key TEXT NOT NULL,
    certificate_request TEXT NOT NULL, certificate TEXT, node_id TEXT, renewal_request TEXT, changed REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS site_certificate (
    fingerprint TEXT PRIMARY KEY, site TEXT NOT NULL REFERENCES site (name), not_after REAL NOT NULL, revoked INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS retired_key (
    key TEXT PRIMARY KEY, site TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS offer (
    run_id TEXT PRIMARY KEY, study_id TEXT NOT NULL, study TEXT NOT NULL, start TEXT NOT NULL, sites TEXT NOT NULL,
    created REAL NOT NULL, withdrawn INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS approval (
    site TEXT NOT NULL, study_id TEXT NOT NULL, decision TEXT NOT NULL, runs INTEGER NOT NULL, signed TEXT NOT NULL,
    received REAL NOT NULL, PRIMARY KEY (site, study_id)
);
CREATE TABLE IF NOT EXISTS run (
    flower_run_id TEXT PRIMARY KEY, run_id TEXT NOT NULL, study_id TEXT NOT NULL, started REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS egress_receipt (
    id INTEGER PRIMARY KEY AUTOINCREMENT, site TEXT NOT NULL, run_id TEXT NOT NULL, round INTEGER NOT NULL, statement TEXT NOT NULL,
    receipt TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS addressed (
    site TEXT NOT NULL, flower_run_id TEXT NOT NULL, message_id TEXT NOT NULL, object_id TEXT NOT NULL,
    PRIMARY KEY (site, flower_run_id, object_id, message_id)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS push_session (
    session_id TEXT PRIMARY KEY, site TEXT NOT NULL, flower_run_id TEXT NOT NULL
);
"""
SCHEMA = Schema((statements(_FIRST),))


class State:
    """The database in `path`; each call opens it for itself, so any process and thread may use it. Made when it is not there.

    The schema is written in one transaction together with its version: a crash leaves all of it or nothing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        _make_private(path)
        with self._open() as database:
            bring_up_to_date(database, SCHEMA, path)

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection for queries. Raises StorageError."""
        with self._open() as database:
            yield database

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction that nobody else writes beside; committed at the end of the block, undone by an error. Raises StorageError."""
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")
            try:
                yield database
                database.commit()
            except BaseException:
                database.rollback()
                raise

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            database = sqlite3.connect(self._path, timeout=30, isolation_level=None)
            try:
                database.row_factory = sqlite3.Row
                database.execute("PRAGMA journal_mode=WAL")
                database.execute("PRAGMA foreign_keys=ON")
                yield database
            finally:
                database.close()
        except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise
        except (sqlite3.DatabaseError, OSError) as error:
            raise StorageError(f"{self._path}: cannot be used ({error}); check free space and permissions") from error


def _make_private(path: Path) -> None:
    """An empty file that only its owner can read; SQLite gives its own files beside it the same mode."""
    try:
        if not path.exists():
            path.touch(mode=0o600)
    except OSError as error:
        raise StorageError(f"{path}: cannot be made ({error.strerror or error}); check the folder and its permissions") from error
