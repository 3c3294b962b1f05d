# SPDX-License-Identifier: Apache-2.0
"""Schemas with numbers: old ones are brought up to date in one step, newer ones are refused and left as they are."""

import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.databases import Schema, bring_up_to_date, statements
from common.errors import StorageError

ONE = ("CREATE TABLE a (x INTEGER)", "INSERT INTO a VALUES (1)")
TWO = ("ALTER TABLE a ADD COLUMN y INTEGER DEFAULT 5",)
SCHEMA = Schema((ONE, TWO))
WHERE = Path("data.sqlite")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data.sqlite"


@pytest.fixture
def database(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    yield connection
    connection.close()


def content(database: sqlite3.Connection) -> tuple[int, list[tuple[int, ...]]]:
    version = database.execute("PRAGMA user_version").fetchone()[0]
    tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return version, database.execute("SELECT * FROM a").fetchall() if tables else []


def test_a_new_file_takes_every_step_and_an_old_one_those_that_it_lacks(database: sqlite3.Connection) -> None:
    bring_up_to_date(database, Schema((ONE,)), WHERE)
    assert content(database) == (1, [(1,)])
    bring_up_to_date(database, SCHEMA, WHERE)
    bring_up_to_date(database, SCHEMA, WHERE)
    assert content(database) == (2, [(1, 5)])


def test_a_newer_file_is_refused_and_not_touched(database: sqlite3.Connection, path: Path) -> None:
    bring_up_to_date(database, SCHEMA, WHERE)
    before = path.read_bytes()
    with pytest.raises(
        StorageError, match=r"data\.sqlite: was written by a newer Wardround \(its schema is number 2, this program knows 1\)"
    ):
        bring_up_to_date(database, Schema((ONE,)), WHERE)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["a bad statement", "a check", "a kill"])
def test_a_step_that_fails_leaves_the_file_as_it_was(database: sqlite3.Connection, path: Path, kind: str) -> None:
    bring_up_to_date(database, Schema((ONE,)), WHERE)
    before = path.read_bytes()

    def check(_database: sqlite3.Connection, version: int) -> None:
        if version == 2:
            raise KeyboardInterrupt if kind == "a kill" else StorageError("not whole")

    schema = Schema((ONE, (*TWO, "INSERT INTO nowhere VALUES (1)"))) if kind == "a bad statement" else Schema((ONE, TWO), check)
    with pytest.raises((sqlite3.OperationalError, StorageError, KeyboardInterrupt)):
        bring_up_to_date(database, schema, WHERE)
    assert content(database) == (1, [(1,)])
    database.close()
    assert path.read_bytes() == before


def test_many_at_once_take_each_step_once(path: Path) -> None:
    def use() -> None:
        connection = sqlite3.connect(path, isolation_level=None, timeout=30)
        bring_up_to_date(connection, SCHEMA, path)
        connection.close()

    users = [threading.Thread(target=use) for _ in range(8)]
    for user in users:
        user.start()
    for user in users:
        user.join()
    connection = sqlite3.connect(path)
    assert content(connection) == (2, [(1, 5)])
    connection.close()


def test_statements_of_a_script() -> None:
    assert statements("\nCREATE TABLE a (x);\n\nCREATE TABLE b (y);\n") == ("CREATE TABLE a (x)", "CREATE TABLE b (y)")
