# SPDX-License-Identifier: Apache-2.0
"""When a lost message is looked for, and when not. The database is rubbish: whoever looks into it gets StorageError."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import StorageError
from common.flower_compat.fleet_records import Delivery
from server.gateway.addressed import Addressed
from server.gateway.redelivery import Redelivery
from server.sites import RegisteredSite
from server.state import State

MESSAGE = Delivery(run_id=1, message_id="m", destination_node_id=7, object_ids=frozenset({"m"}))


@pytest.fixture
def addressed(tmp_path: Path) -> Addressed:
    return Addressed(State(tmp_path / "state.sqlite"))


@pytest.fixture
def redelivery(tmp_path: Path, addressed: Addressed) -> Redelivery:
    return Redelivery(tmp_path / "superlink.sqlite", addressed)


def site() -> RegisteredSite:
    return RegisteredSite("north", "approved", "", "", "", "", 7, "", None, None, 0.0, ())


def looks(redelivery: Redelivery) -> bool:
    """Whether a pull that brings nothing looks into the database; it ends without an answer if so."""
    with redelivery.pull("north") as pull:
        try:
            asyncio.run(redelivery.found(site(), pull))
        except StorageError:
            return True
        pull.given = ()
        return False


def rubbish(path: Path) -> None:
    (path / "superlink.sqlite").write_bytes(b"no database at all" * 1000)


def test_without_doubt_nothing_is_looked_up(tmp_path: Path, redelivery: Redelivery, addressed: Addressed) -> None:
    assert not looks(redelivery), "the first pull looked, and found no database"
    rubbish(tmp_path)
    assert not any(looks(redelivery) for _ in range(3)), "idle"
    asyncio.run(give(redelivery, addressed))
    asyncio.run(addressed.confirm("north", 1, "m"))
    assert not looks(redelivery), "the message was confirmed"


def test_the_first_pull_and_the_one_after_a_failure_look(tmp_path: Path, redelivery: Redelivery) -> None:
    rubbish(tmp_path)
    assert looks(redelivery) and looks(redelivery), "until it is known"
    (tmp_path / "superlink.sqlite").unlink()
    assert not looks(redelivery)
    rubbish(tmp_path)
    with pytest.raises(ConnectionError), redelivery.pull("north"):
        raise ConnectionError
    assert looks(redelivery)


def test_a_pull_after_a_message_that_was_neither_confirmed_nor_answered_looks(
    tmp_path: Path, redelivery: Redelivery, addressed: Addressed
) -> None:
    assert not looks(redelivery)
    rubbish(tmp_path)
    asyncio.run(give(redelivery, addressed))
    assert looks(redelivery)


def test_an_answer_ends_the_doubt_and_another_message_does_not(tmp_path: Path, redelivery: Redelivery, addressed: Addressed) -> None:
    assert not looks(redelivery)
    rubbish(tmp_path)
    asyncio.run(give(redelivery, addressed))
    addressed.took_reply("north", 1, "m")
    assert not looks(redelivery)
    for name in ("lost", "next"):
        asyncio.run(give(redelivery, addressed, name))
    addressed.took_reply("north", 1, "next")
    assert looks(redelivery)


def test_of_overlapping_pulls_only_the_newest_looks(tmp_path: Path, redelivery: Redelivery) -> None:
    with redelivery.pull("north") as older:
        assert older.in_doubt and not looks(redelivery)
        rubbish(tmp_path)
        assert asyncio.run(redelivery.found(site(), older)) == 0, "the site may already work on what the newer one brought"


def test_what_the_older_of_overlapping_pulls_brought_may_have_gone_nowhere(tmp_path: Path, redelivery: Redelivery) -> None:
    assert not looks(redelivery)
    rubbish(tmp_path)
    with redelivery.pull("north") as older:
        assert not looks(redelivery)
        older.given = (MESSAGE,)
    assert looks(redelivery)


async def give(redelivery: Redelivery, addressed: Addressed, name: str = "m") -> None:
    """A pull that brings a message."""
    with redelivery.pull("north") as pull:
        await addressed.deliver("north", 1, name, [name])
        pull.given = (replace(MESSAGE, message_id=name),)
