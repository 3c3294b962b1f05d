# SPDX-License-Identifier: Apache-2.0
"""A large object goes into its file as it comes: only when its sender may, only when it is what its id says, and never in halves."""

import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from common.flower_compat.large_objects import IN_A_FILE, objects_folder
from tests.common.flower_compat.attacker import FleetAttacker
from tests.common.flower_compat.fleet_bytes import object_id, pushed_object, stored
from tests.server.gateway.conftest import Federation
from tests.server.gateway.coordinator import RUN_OF
from tests.server.gateway.test_fleet_calls import deliver, open_session, refused

NORTH, BOTH, NOBODY = RUN_OF["north"], RUN_OF["both"], RUN_OF["nobody"]
CONTENT = os.urandom(3 << 20)
NAME = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def folder(federation: Federation) -> Iterator[Path]:
    """The folder of objects, empty before and after."""
    path = objects_folder(federation.coordinator.home.superlink_database)
    path.mkdir(exist_ok=True)
    for left in path.iterdir():
        left.unlink()
    yield path
    for left in path.iterdir():
        left.unlink()


@pytest.fixture
def session(federation: Federation, north: FleetAttacker) -> str:
    """A session that north may push objects in."""
    deliver(federation, north, NORTH, "streamed")
    open_session(federation, north, NORTH, "streamed", "stream-session")
    federation.upstream.answer("push-object", stored(True))
    return "stream-session"


def push(north: FleetAttacker, session: str, name: str = NAME, content: bytes = CONTENT, run: int = NORTH) -> httpx.Response:
    return north.post("push-object", north.object_call(run, name, content, session))


def test_it_lies_in_its_file_and_the_superlink_hears_of_it(
    federation: Federation, north: FleetAttacker, session: str, folder: Path
) -> None:
    answer = push(north, session)
    assert answer.content == stored(True)
    assert [path.name for path in folder.iterdir()] == [NAME] and (folder / NAME).read_bytes() == CONTENT
    assert pushed_object(federation.upstream.took("push-object")[-1].body) == (NAME, IN_A_FILE, session)
    assert federation.logged(object=NAME[:16], status=200)["bytes_in"] > len(CONTENT)


def test_what_the_superlink_does_not_take_goes_again(federation: Federation, north: FleetAttacker, session: str, folder: Path) -> None:
    federation.upstream.answer("push-object", stored(False))
    assert push(north, session).content == stored(False)
    federation.upstream.answer("push-object", b"", 503)
    assert push(north, session).status_code == 503
    assert list(folder.iterdir()) == []


def test_what_was_there_before_stays(federation: Federation, north: FleetAttacker, session: str, folder: Path) -> None:
    push(north, session)
    federation.upstream.answer("push-object", stored(False))
    push(north, session)
    assert (folder / NAME).read_bytes() == CONTENT


def test_another_content_than_its_id_says_is_not_kept(federation: Federation, north: FleetAttacker, session: str, folder: Path) -> None:
    asked = len(federation.upstream.took("push-object"))
    answer = push(north, session, object_id("something else"))
    assert (answer.status_code, answer.content) == (200, stored(False))
    assert list(folder.iterdir()) == [] and len(federation.upstream.took("push-object")) == asked
    assert federation.logged(code="NOT_ITS_DIGEST", status=200)


@pytest.mark.parametrize("name", ["../../server.key", "/etc/passwd", "", "a/b"])
def test_an_id_is_no_path(north: FleetAttacker, session: str, folder: Path, name: str) -> None:
    before = sorted(path.name for path in folder.parent.iterdir())
    assert refused(push(north, session, name), "MALFORMED", 400)
    assert list(folder.iterdir()) == [] and sorted(path.name for path in folder.parent.iterdir()) == before


def test_who_may_not_push_is_told_so_and_nothing_is_kept(federation: Federation, north: FleetAttacker, session: str, folder: Path) -> None:
    asked = len(federation.upstream.took("push-object"))
    assert refused(push(north, "anothers-session"), "NOT_YOUR_SESSION")
    assert refused(push(north, session, run=NOBODY), "RUN_NOT_APPROVED")
    assert refused(push(north, ""), "NOT_YOUR_SESSION")
    assert list(folder.iterdir()) == [] and len(federation.upstream.took("push-object")) == asked


def test_half_an_object_leaves_nothing(federation: Federation, north: FleetAttacker, session: str, folder: Path) -> None:
    """The site goes in the middle: as it is cut off, and as it says one size and sends another."""
    call = north.object_call(NORTH, NAME, CONTENT, session)

    def half() -> Iterator[bytes]:
        yield call[: 1 << 20]
        raise ConnectionAbortedError

    headers = {**north.headers(), "content-length": str(len(call))}
    with pytest.raises(ConnectionAbortedError):
        north._http.post("/v1/fleet/push-object", content=half(), headers=headers)
    end = time.monotonic() + 10
    while any(folder.iterdir()):
        assert time.monotonic() < end, "a torn file stays"
        time.sleep(0.05)
    assert push(north, session).content == stored(True)


def test_a_disk_that_takes_nothing_is_told_at_the_coordinator_and_tried_again(
    federation: Federation, north: FleetAttacker, session: str, folder: Path
) -> None:
    away = folder.with_name("away")
    folder.rename(away)
    try:
        answer = push(north, session)
    finally:
        away.rename(folder)
    assert refused(answer, "STORAGE", 503)
    said = (federation.coordinator.home.logs / "gateway.log").read_text()
    assert "cannot write into" in said and str(folder) in said and "check free space" in said
    assert push(north, session).content == stored(True)
