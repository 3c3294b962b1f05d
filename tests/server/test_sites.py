# SPDX-License-Identifier: Apache-2.0
"""The registry: who is welcome, and the database below it."""

import sqlite3
import stat
from pathlib import Path

import pytest

from common.crypto.site_keys import SiteKeys
from common.errors import InputError, StorageError
from server.home import ServerHome
from server.sites import SiteRegistry
from server.state import SCHEMA, State
from tests.server.coordinator import DAY, NOW, founded, invited, joined, registry, send, shown


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    return founded(tmp_path / "coordinator")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> SiteKeys:
    return SiteKeys.ensure(tmp_path_factory.mktemp("site"))


def test_who_is_welcome(home: ServerHome, keys: SiteKeys) -> None:
    send(home, keys.request(invited(home, "north")))
    sites = registry(home)
    assert sites.is_welcome("0" * 64, NOW) is None
    assert "not known" in str(sites.why_not("0" * 64, NOW))
    sites.revoke("north")

    fresh = SiteKeys.ensure(home.folder / "fresh")
    site = joined(home, "north", fresh)
    mark = shown(site)
    end = NOW + 365 * DAY
    assert sites.is_welcome(mark, end - 1) == sites.by_fingerprint(mark) == site
    assert sites.why_not(mark, end - 1) is None
    assert sites.is_welcome(mark, end) is None
    assert "has expired" in str(sites.why_not(mark, end))
    sites.revoke("north")
    assert sites.is_welcome(mark, NOW) is None
    assert "was revoked" in str(sites.why_not(mark, NOW))
    assert sites.by_fingerprint(mark) == sites.by_name("north"), "still known by name, for the log"


def test_revocation_is_seen_by_who_has_the_database_open(home: ServerHome, keys: SiteKeys) -> None:
    site = joined(home, "north", keys)
    gateway = SiteRegistry(State(home.state))
    assert gateway.is_welcome(shown(site), NOW) is not None
    registry(home).revoke("north")
    assert gateway.is_welcome(shown(site), NOW) is None


def test_revoking_twice_and_revoking_an_invitation(home: ServerHome, keys: SiteKeys) -> None:
    joined(home, "north", keys)
    first = registry(home).revoke("north", NOW)
    assert registry(home).revoke("north", NOW + 5) == first
    invitation = invited(home, "south")
    assert registry(home).revoke("south") is None
    assert registry(home).open_invitations() == []
    with pytest.raises(InputError, match="no such site; there are: north"):
        registry(home).revoke("south")
    assert invitation.site == "south"


def test_a_name_that_is_not_there(home: ServerHome) -> None:
    invited(home, "north")
    with pytest.raises(InputError, match="invited and has not sent its request"):
        registry(home).by_name("north")
    with pytest.raises(InputError, match="there are: none"):
        registry(home).by_name("west")


@pytest.mark.parametrize("node_id", [0, 7, 2**63 - 1, 2**63, 2**64 - 1])
def test_node_ids_have_64_bits(home: ServerHome, keys: SiteKeys, node_id: int) -> None:
    joined(home, "north", keys)
    registry(home).set_node_id("north", node_id)
    assert registry(home).by_name("north").node_id == node_id
    registry(home).set_node_id("north", None)
    assert registry(home).by_name("north").node_id is None


def test_the_database_is_the_owners_alone(home: ServerHome) -> None:
    assert stat.S_IMODE(home.state.stat().st_mode) == 0o600


@pytest.mark.parametrize("left", ["empty file", "half the tables"])
def test_a_database_that_a_crash_left_half_made_is_completed(tmp_path: Path, left: str) -> None:
    path = tmp_path / "state.sqlite"
    with sqlite3.connect(path) as database:
        if left == "half the tables":
            for statement in SCHEMA.steps[0][:4]:
                database.execute(statement)
    database.close()
    with State(path).reading() as database:
        assert database.execute("SELECT count(*) FROM addressed").fetchone()[0] == 0


def test_an_error_undoes_the_whole_block(tmp_path: Path) -> None:
    state = State(tmp_path / "state.sqlite")
    with pytest.raises(sqlite3.IntegrityError), state.writing() as database:
        database.execute("INSERT INTO invitation VALUES ('a', 'x', 1, NULL)")
        database.execute("INSERT INTO invitation VALUES ('b', 'x', 1, NULL)")
    with state.reading() as database:
        assert database.execute("SELECT count(*) FROM invitation").fetchone()[0] == 0


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match="cannot be used"):
        State(path)
    with pytest.raises(StorageError, match="cannot be made"):
        State(tmp_path / "none" / "state.sqlite")
