# SPDX-License-Identifier: Apache-2.0
"""A real SuperLink's own database: what it counts as delivered is found, and given out again to the same node only."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.flower_compat.deliveries import delivered_unanswered, undeliver
from common.flower_compat.fleet import FleetConnection, Pulled, answer_to
from tests.common.flower_compat.loopback_link import LoopbackLink, new_node_key

CONTENT = RecordDict({"facts": ConfigRecord({"round": 1}), "model": ArrayRecord({"w": Array(np.arange(100_000, dtype=np.float32))})})


@contextmanager
def online(link: LoopbackLink, name: str) -> Iterator[FleetConnection]:
    key = new_node_key()
    link.register(key, f"{name}-{key.public_key().public_numbers().x % 10**9}")
    connection = FleetConnection(link.url, link.tls(), key)
    connection.activate()
    yield connection
    connection.deactivate()
    connection.close()


def open_ids(link: LoopbackLink, now: float | None = None) -> list[str]:
    return [message_id for message_id, _, _ in delivered_unanswered(link.superlink_database, time.time() if now is None else now)]


def taken(node: FleetConnection) -> Pulled:
    pulled = node.pull()
    assert pulled is not None
    return pulled


def test_a_message_is_given_out_again_whole_and_to_its_node_only(link: LoopbackLink) -> None:
    path = link.superlink_database
    with online(link, "north") as north, online(link, "south") as south, link.run({"study": "a study"}) as server:
        sent = server.send(CONTENT, north.node_id)
        assert sent not in open_ids(link) and undeliver(path, [sent]) == 0, "nobody has pulled it"
        first = taken(north)
        assert north.pull() is None
        assert (sent, server.flower_run_id, north.node_id) in delivered_unanswered(path, time.time())
        assert undeliver(path, [sent, "no such message"]) == 1
        assert sent not in open_ids(link) and south.pull() is None
        again = taken(north)
        assert again == first and again.message_id == sent and north.pull() is None
        message = north.fetch(again, lambda: False)
        np.testing.assert_array_equal(message.content["model"]["w"].numpy(), np.arange(100_000, dtype=np.float32))
        north.confirm(again)
        north.push(answer_to(again, RecordDict({"facts": ConfigRecord({"answer": 1})}), 0.1))
        assert server.reply(sent).content["facts"]["answer"] == 1


def test_what_was_confirmed_stays_delivered(link: LoopbackLink) -> None:
    """The site works on it. Given out again, Flower would find no objects, drop the message, and refuse the reply."""
    with online(link, "north") as north, link.run({"study": "a study"}) as server:
        sent = server.send(CONTENT, north.node_id)
        pulled = taken(north)
        north.confirm(pulled)
        assert sent not in open_ids(link) and undeliver(link.superlink_database, [sent]) == 0
        assert north.pull() is None
        north.push(answer_to(pulled, CONTENT, 0.1))
        assert server.reply(sent).has_content()


def test_what_was_answered_stays_delivered(link: LoopbackLink) -> None:
    """A refusal goes out before anything is fetched or confirmed."""
    with online(link, "north") as north, link.run({"study": "a study"}) as server:
        sent = server.send(CONTENT, north.node_id)
        pulled = taken(north)
        north.push(answer_to(pulled, RecordDict({"facts": ConfigRecord({"code": "no"})}), 0.1))
        assert sent not in open_ids(link) and undeliver(link.superlink_database, [sent]) == 0
        assert north.pull() is None and server.reply(sent).content["facts"]["code"] == "no"


def test_what_has_expired_stays_delivered(link: LoopbackLink) -> None:
    with online(link, "north") as north, link.run({"study": "a study"}) as server:
        sent = server.send(CONTENT, north.node_id, ttl=3.0)
        expires = taken(north).expires
        assert sent in open_ids(link, expires - 0.5) and sent not in open_ids(link, expires + 0.5)
        time.sleep(max(0.0, expires - time.time()) + 0.1)
        assert undeliver(link.superlink_database, [sent]) == 0


def test_without_a_database_there_is_nothing(tmp_path: Path) -> None:
    assert delivered_unanswered(tmp_path / "superlink.sqlite", time.time()) == []


def test_it_loads_nothing_of_flower() -> None:
    code = "import sys, common.flower_compat.deliveries; print(any(name.split('.')[0] in ('flwr', 'numpy') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
