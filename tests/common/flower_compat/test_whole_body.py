# SPDX-License-Identifier: Apache-2.0
"""A request's body passes the SuperLink's layers in one piece, whatever pieces it came in; a client that goes is still seen to go."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from common.flower_compat.fleet import FleetConnection
from common.flower_compat.large_objects import objects_folder
from common.flower_compat.superlink_layers import WholeBody
from tests.common.flower_compat.loopback_link import new_node_key, running_link

PIECES = [b"one", b"", b"two", b"three"]


def body(*parts: bytes) -> list[dict[str, Any]]:
    return [{"type": "http.request", "body": part, "more_body": number < len(parts)} for number, part in enumerate(parts, 1)]


def heard(events: list[dict[str, Any]], kind: str = "http") -> list[dict[str, Any]]:
    """What an application hears that asks until there is nothing more."""
    found: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return events.pop(0)

    async def app(scope: Any, ask: Any, send: Any) -> None:
        while events or not found:
            found.append(await ask())

    async def send(_: Any) -> None:
        return None

    asyncio.run(WholeBody(app)({"type": kind}, receive, send))  # type: ignore[arg-type]  # a scope of one fact
    return found


def test_pieces_become_one() -> None:
    gone = {"type": "http.disconnect"}
    assert heard([*body(*PIECES), gone]) == [{"type": "http.request", "body": b"onetwothree", "more_body": False}, gone]


def test_one_piece_stays_as_it_is() -> None:
    assert heard(body(b"whole")) == body(b"whole")
    assert heard(body(b"")) == body(b"")


def test_who_goes_in_the_middle_is_seen_to_go() -> None:
    assert heard([*body(*PIECES)[:2], {"type": "http.disconnect"}]) == [{"type": "http.disconnect"}]


def test_what_is_no_request_is_left_alone() -> None:
    events = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]
    assert heard(list(events), "lifespan") == events


def test_the_superlink_that_we_run_keeps_large_objects_in_files(tmp_path: Path) -> None:
    with running_link(tmp_path) as link, link.run({"study": "{}"}) as server:
        key = new_node_key()
        number = link.register(key)
        site = FleetConnection(link.url, link.tls(), key)
        site.activate()
        weights = np.random.default_rng(0).random(2_000_000)
        server.send(RecordDict({"model": ArrayRecord({"weight": Array(weights)})}), number)
        pulled = site.pull()
        assert pulled is not None
        stored = sum(path.stat().st_size for path in objects_folder(link.superlink_database).iterdir())
        assert stored > weights.nbytes > link.superlink_database.stat().st_size
        message = site.fetch(pulled, lambda: False)
        assert np.array_equal(message.content["model"]["weight"].numpy(), weights)
        site.confirm(pulled)
        assert list(objects_folder(link.superlink_database).iterdir()) == []
        site.close()
