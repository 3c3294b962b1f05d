# SPDX-License-Identifier: Apache-2.0
"""Ledgers of earlier releases: used as they are, with every row, trigger and link of the chain; and those of later releases, refused."""

import sqlite3
from contextlib import closing
from pathlib import Path
from random import Random
from unittest.mock import patch

import pytest

import client.ledger.database as database
from client.ledger.database import SCHEMA, VERSIONS
from common.databases import Schema
from common.errors import StorageError
from common.privacy.charges import Line, Standing, State
from tests.client.ledger.disk import Disk, File, put
from tests.client.ledger.support import EVENT, account_in, key, open_book
from tests.client.ledger.test_lost_writes import logged, pytestmark, shim
from tests.support.stored import LEDGER_HEAD, number_in, versions_of
from tests.support.stored import put as put_stored

__all__ = ["pytestmark", "shim"]
NOTE = "CREATE TABLE note (text TEXT NOT NULL) STRICT"
FURTHER = {**SCHEMA, "note": NOTE}


def stored(folder: Path, version: int) -> Path:
    return put_stored("ledger", version, folder / "ledger.sqlite")


def test_the_newest_version_is_stored_too() -> None:
    """Whoever adds a step stores what it leads to, so that the release after that is tested with it."""
    assert versions_of("ledger") == list(range(VERSIONS.version + 1))


@pytest.mark.parametrize("version", versions_of("ledger"))
def test_a_stored_ledger_goes_on(tmp_path: Path, version: int) -> None:
    path = stored(tmp_path, version)
    book = open_book(tmp_path)
    fold = book.fold()
    assert (fold.number, fold.head) == (8, LEDGER_HEAD), "every row is the one that was written"
    assert {charge.key.round: charge.state for charge in book.charges()} == {1: State.SENT, 2: State.SETTLED, 3: State.RESERVED}
    account = account_in(book)
    assert [promise.count for promise in book.promises(account, Line.TRAINING)] == [3]
    assert book.reserve(key(account, 3), EVENT, 10) is Standing.RETRY
    assert book.reserve(key(account, 4), EVENT, 10) is Standing.NEW
    assert number_in(path) == VERSIONS.version
    with closing(sqlite3.connect(path)) as connection:
        for change in (
            "UPDATE rows SET content = ''",
            "DELETE FROM rows",
            "DELETE FROM patients",
            "INSERT INTO rows VALUES (99, '', '', '', '')",
        ):
            with pytest.raises(sqlite3.IntegrityError, match=r"(rows|patients) are"):
                connection.execute(change)
    book.check_storage()
    assert open_book(tmp_path).fold().number == 9


def test_a_ledger_of_a_later_release_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = stored(tmp_path, VERSIONS.version)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA user_version = {VERSIONS.version + 1}")
    before = path.read_bytes()
    for use in (lambda: open_book(tmp_path).fold(), lambda: account_in(open_book(tmp_path)), lambda: open_book(tmp_path).check_storage()):
        with pytest.raises(StorageError, match=r"ledger\.sqlite: was written by a newer Wardround"):
            use()
    assert path.read_bytes() == before


@pytest.mark.parametrize("trigger", [name for name, sql in SCHEMA.items() if "TRIGGER" in sql])
def test_a_ledger_that_lacks_a_trigger_is_not_brought_up_to_date(tmp_path: Path, trigger: str) -> None:
    path = stored(tmp_path, 0)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"DROP TRIGGER {trigger}")
    with pytest.raises(StorageError, match=f"{trigger} is missing"):
        open_book(tmp_path).fold()
    assert number_in(path) == 0


def check_further(connection: sqlite3.Connection, version: int) -> None:
    with patch.object(database, "SCHEMA", FURTHER if version > VERSIONS.version else SCHEMA):
        database.check_schema(connection)


@pytest.mark.parametrize("step", [(NOTE,), (NOTE, "DROP TRIGGER rows_delete"), ("DROP TRIGGER rows_delete", "DELETE FROM rows", NOTE)])
def test_a_step_keeps_rows_and_triggers_or_does_not_happen(tmp_path: Path, step: tuple[str, ...]) -> None:
    """A release to come, with a further table; and what happens when its author was careless."""
    path = stored(tmp_path, 0)
    further = Schema((*VERSIONS.steps, step), check_further)
    with patch.object(database, "VERSIONS", further), patch.object(database, "SCHEMA", FURTHER):
        if len(step) == 1:
            assert open_book(tmp_path).fold().head == LEDGER_HEAD
            assert number_in(path) == VERSIONS.version + 1
            assert account_in(open_book(tmp_path))
            return
        with pytest.raises(StorageError, match="rows_delete is missing"):
            open_book(tmp_path).fold()
    assert number_in(path) == 0
    assert open_book(tmp_path).fold().head == LEDGER_HEAD


def test_a_power_cut_at_any_point_leaves_the_old_ledger_or_the_new(shim: Path, tmp_path: Path) -> None:
    folder, after = tmp_path / "site", tmp_path / "after"
    folder.mkdir()
    path = stored(folder, 0)
    disk = Disk(folder)
    disk.add(path, File(bytearray(path.read_bytes())))
    disk.lasting_names = dict(disk.names)
    numbers = set()
    for index, operation in enumerate(logged(shim, folder, "upgrade")):
        disk.apply(operation)
        for chance in (None, Random(index)):
            put({name: content for name, content in disk.after_power_cut(chance).items() if name != "told"}, after)
            numbers.add(number_in(after / "ledger.sqlite"))
            book = open_book(after)
            assert book.fold()._hashes[8] == LEDGER_HEAD
            book.check_storage()
            assert account_in(book)
            for left in after.iterdir():
                left.unlink()
            after.rmdir()
    assert numbers == {0, VERSIONS.version}
