# SPDX-License-Identifier: Apache-2.0
"""Databases of a coordinator as earlier releases left them."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import StorageError
from server import runs, state
from server.run_registry import RunRegistry
from server.runs import RunStore
from server.state import State
from tests.support.stored import number_in, put, versions_of


@pytest.mark.parametrize(("name", "newest"), [("state", state.SCHEMA.version), ("rounds", runs.SCHEMA.version)])
def test_the_newest_version_is_stored_too(name: str, newest: int) -> None:
    """Whoever adds a step stores what it leads to, so that the release after that is tested with it."""
    assert versions_of(name)[-1] == newest


def tables(path: Path) -> dict[str, set[str]]:
    """Every table with its columns."""
    with closing(sqlite3.connect(path)) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: {row[1] for row in database.execute(f"PRAGMA table_info({name})")} for name in names}


@pytest.mark.parametrize("version", versions_of("state"))
def test_a_stored_database_goes_on(tmp_path: Path, version: int) -> None:
    path = put("state", version, tmp_path / "state.sqlite")
    before = State(path)
    with before.reading() as database:
        for name in tables(path):
            assert database.execute(f"SELECT count(*) FROM {name}").fetchone()[0] == 1, name
    assert RunRegistry(before).find(77) is not None
    State(tmp_path / "new.sqlite")
    assert (number_in(path), tables(path)) == (state.SCHEMA.version, tables(tmp_path / "new.sqlite"))


@pytest.mark.parametrize("version", versions_of("rounds"))
def test_a_stored_run_store_goes_on(tmp_path: Path, version: int) -> None:
    path = put("rounds", version, tmp_path / "rounds.sqlite")
    store = RunStore(path)
    assert [(done.round, done.updates, done.seconds) for done in store.rounds("run")] == [(1, 1, 2.5)]
    ((number, detail),) = store.details("run")
    assert (number, detail.site, detail.payload_sha256) == (1, "north", "ab")
    store.strike("run", 1, "north", "not finite")
    assert store.suspended("run") == {}
    RunStore(tmp_path / "new.sqlite")
    assert (number_in(path), tables(path)) == (runs.SCHEMA.version, tables(tmp_path / "new.sqlite"))


@pytest.mark.parametrize(("open_it", "newest"), [(State, state.SCHEMA.version), (RunStore, runs.SCHEMA.version)])
def test_one_of_a_later_release_is_refused(tmp_path: Path, open_it: type[State] | type[RunStore], newest: int) -> None:
    path = tmp_path / "data.sqlite"
    open_it(path)
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA user_version = {newest + 1}")
    with pytest.raises(StorageError, match="was written by a newer Wardround"):
        open_it(path)
