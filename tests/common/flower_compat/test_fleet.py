# SPDX-License-Identifier: Apache-2.0
"""A site's connection against a real SuperLink with TLS and node authentication, and against servers that answer nonsense."""

import gc
import ssl
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.proto.message_pb2 import Metadata, ObjectTree, PullObjectResponse

from common.errors import ProtocolError
from common.flower_compat import control, fleet_client, fleet_messages
from common.flower_compat.fleet import FleetConnection, Interrupted, NotWelcome, Pulled, RunOver, StillOnline, Unreachable, answer_to
from common.flower_compat.fleet_messages import ArrivalGuard, object_ids, records_of
from common.flower_compat.large_objects import IN_A_FILE, LARGE_BYTES, objects_folder
from tests.common.flower_compat.junk_server import JunkServer, junk_server
from tests.common.flower_compat.loopback_link import LoopbackLink, new_node_key, running_link
from tests.support.tls_server import connect_proxy

CONFIG = {"study": "a study", "signature": "a signature"}
DIGEST = "0" * 64
TENSOR = np.arange(3_000_000, dtype=np.float32)  # 12 MB: several of Flower's chunks of 5 MB


@pytest.fixture
def node(link: LoopbackLink) -> Iterator[FleetConnection]:
    key = new_node_key()
    link.register(key, f"site-{key.public_key().public_numbers().x % 10**9}")
    connection = FleetConnection(link.url, link.tls(), key)
    yield connection
    connection.close()


def records(text: str = "hello") -> RecordDict:
    return RecordDict({"facts": ConfigRecord({"text": text}), "model": ArrayRecord({"w": Array(TENSOR)})})


def never() -> bool:
    return False


def test_a_message_and_its_answer(link: LoopbackLink, node: FleetConnection) -> None:
    number = node.activate()
    assert link.is_online(number)
    assert node.pull() is None
    with link.run(CONFIG) as server:
        sent = server.send(records(), number)
        pulled = node.pull()
        assert pulled is not None and node.pull() is None
        assert (pulled.flower_run_id, pulled.message_id, pulled.message_type) == (server.flower_run_id, sent, "train")
        assert 100 < pulled.expires - time.time() < 121
        facts = node.run(pulled.flower_run_id)
        assert facts.config == CONFIG and facts.is_server_app
        message = node.fetch(pulled, never)
        assert message.content["facts"]["text"] == "hello"
        np.testing.assert_array_equal(message.content["model"]["w"].numpy(), TENSOR)
        node.confirm(pulled)
        outgoing = answer_to(pulled, records("back"), 1.5)
        node.push(outgoing)
        node.push(outgoing)  # as after a lost answer: still one reply
        reply = server.reply(sent)
        assert (reply.content["facts"]["text"], reply.metadata.src_node_id) == ("back", number)
        np.testing.assert_array_equal(reply.content["model"]["w"].numpy(), TENSOR)
    node.deactivate()
    assert not link.is_online(number)


def test_a_run_that_shares_the_superlinks_disk_sends_it_small_parts_only(
    link: LoopbackLink, node: FleetConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is large is in its file when it is announced: then only each message's own object is asked for; the sites get all."""
    number = node.activate()
    with link.run(CONFIG) as server:
        monkeypatch.setattr(server.grid, "_objects", objects_folder(link.superlink_database))
        client, sent = vars(server.grid)["_client"], list[int]()
        push = client.PushObject
        monkeypatch.setattr(client, "PushObject", lambda asked: sent.append(len(asked.object_content)) or push(asked))
        list(server.grid.push_messages([Message(records(text), number, "train", ttl=120.0) for text in ("one", "two")]))
        assert sent.count(len(IN_A_FILE)) == 2
        assert max(sent) < LARGE_BYTES
        texts = set()
        for _ in range(2):
            pulled = node.pull()
            assert pulled is not None
            message = node.fetch(pulled, never)
            node.confirm(pulled)
            texts.add(message.content["facts"]["text"])
            np.testing.assert_array_equal(message.content["model"]["w"].numpy(), TENSOR)
        assert texts == {"one", "two"}


def test_a_message_that_is_dropped_leaves_nothing_in_memory(link: LoopbackLink, node: FleetConnection) -> None:
    """Neither what came nor what went waits for the garbage collector, which looks at long lists of small things, and a model is none."""
    number = node.activate()
    with link.run(CONFIG) as server:
        server.send(records(), number)
        pulled = node.pull()
        assert pulled is not None
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            message = node.fetch(pulled, never)
            held = tracemalloc.get_traced_memory()[0]
            del message
            outgoing = answer_to(pulled, records("back"), 1.5)
            node.push(outgoing)
            del outgoing
            left = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
            gc.enable()
    assert held > TENSOR.nbytes and left < TENSOR.nbytes / 4


def test_a_message_can_be_answered_from_its_header_alone(link: LoopbackLink, node: FleetConnection) -> None:
    number = node.activate()
    with link.run(CONFIG) as server:
        sent = server.send(records(), number, "evaluate")
        pulled = node.pull()
        assert pulled is not None
        node.push(answer_to(Pulled(pulled.header, ()), RecordDict({"facts": ConfigRecord({"code": "no"})}), 0.0))
        assert server.reply(sent).content["facts"]["code"] == "no"


def test_a_run_that_has_ended(link: LoopbackLink, node: FleetConnection) -> None:
    number = node.activate()
    with link.run(CONFIG) as server:
        server.send(records(), number)
        pulled = node.pull()
    assert pulled is not None
    with pytest.raises(RunOver, match="ended"):
        node.run(pulled.flower_run_id)
    with pytest.raises(RunOver):
        node.fetch(pulled, never)
    with pytest.raises(RunOver):
        node.push(answer_to(pulled, records(), 0.0))


def test_stopped_while_a_message_is_on_its_way(link: LoopbackLink, node: FleetConnection) -> None:
    number = node.activate()
    with link.run(CONFIG) as server:
        server.send(records(), number)
        pulled = node.pull()
        assert pulled is not None
        with pytest.raises(Interrupted):
            node.fetch(pulled, lambda: True)
        assert node.fetch(pulled, never).content["facts"]["text"] == "hello"


def test_a_key_that_is_not_registered(link: LoopbackLink) -> None:
    stranger = FleetConnection(link.url, link.tls(), new_node_key())
    with pytest.raises(StillOnline, match="not registered"):  # Flower tells "unknown" and "still online" apart by nothing
        stranger.activate()
    stranger.close()


def test_a_node_that_died_is_refused_and_goes_on_under_its_number(link: LoopbackLink) -> None:
    key = new_node_key()
    number = link.register(key, "died")
    first = FleetConnection(link.url, link.tls(), key)
    first.activate()
    first.close()  # as after kill -9: nobody said goodbye
    second = FleetConnection(link.url, link.tls(), key)
    with pytest.raises(StillOnline):
        second.activate()
    assert second.activate(known_node_id=number) == number
    assert second.pull() is None
    second.deactivate()
    second.close()


def test_a_number_of_somebody_else_is_of_no_use(link: LoopbackLink, node: FleetConnection) -> None:
    other = node.activate()
    thief = FleetConnection(link.url, link.tls(), new_node_key())
    with pytest.raises(NotWelcome, match="401"):
        thief.resume(other)
    thief.close()


def test_another_authority(link: LoopbackLink, tmp_path: Path) -> None:
    other = LoopbackLink(tmp_path / "other")
    other.prepare()
    connection = FleetConnection(link.url, other.tls(), new_node_key())
    with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
        connection.activate()
    connection.close()


def test_a_node_that_is_taken_off_the_list_keeps_its_process_and_its_heartbeat(link: LoopbackLink, node: FleetConnection) -> None:
    number = node.activate()
    assert node._beat()
    control.unregister_node(link, number)
    assert not node._beat()  # a 401, for which Flower's own heartbeat sends this process a SIGINT
    assert node._heartbeat is not None and node._heartbeat.is_running
    with pytest.raises(NotWelcome, match="401"):
        node.pull()


def test_a_heartbeat_that_died_is_started_again(link: LoopbackLink, node: FleetConnection) -> None:
    node.activate()
    assert not node.keep_heartbeat()
    assert node._heartbeat is not None
    node._heartbeat.stop()
    node.last_heartbeat = None
    assert node.keep_heartbeat()
    deadline = time.monotonic() + 5
    while node.last_heartbeat is None:
        assert time.monotonic() < deadline, "no heartbeat"
        time.sleep(0.01)


def test_a_server_that_is_killed_and_comes_back(tmp_path: Path) -> None:
    with running_link(tmp_path / "link") as own:
        key = new_node_key()
        number = own.register(key)
        connection = FleetConnection(own.url, own.tls(), key)
        connection.activate()
        own.kill()
        with pytest.raises(Unreachable):
            connection.pull()
        assert not connection._beat()
        own.start()
        assert connection.pull() is None and connection._beat()
        assert own.is_online(number)
        connection.close()


@pytest.fixture(scope="module")
def junk(link: LoopbackLink) -> Iterator[JunkServer]:
    with junk_server(link.certificate, link.certificate_key) as server:
        yield server


@pytest.fixture
def lost(junk: JunkServer, link: LoopbackLink, node_key: ec.EllipticCurvePrivateKey) -> Iterator[FleetConnection]:
    junk.status, junk.body, junk.headers, junk.paths = 200, b"", {}, []
    connection = FleetConnection(junk.url, link.tls(), node_key)
    connection.activate()
    yield connection
    connection.close()


@pytest.fixture(scope="module")
def node_key() -> ec.EllipticCurvePrivateKey:
    return new_node_key()


@pytest.mark.parametrize(
    ("status", "about_run", "error"),
    [
        (401, False, NotWelcome),
        (401, True, NotWelcome),
        (403, False, NotWelcome),
        (403, True, RunOver),
        (404, False, Unreachable),
        (404, True, RunOver),
        (413, True, RunOver),
        (429, False, Unreachable),
        (429, True, Unreachable),
        (500, True, Unreachable),
        (502, False, Unreachable),
        (302, True, Unreachable),
    ],
)
def test_what_becomes_of_a_status(junk: JunkServer, lost: FleetConnection, status: int, about_run: bool, error: type[Exception]) -> None:
    junk.status, junk.body = status, b'{"code": "X", "message": "y"}'
    with pytest.raises(error) as raised:
        lost.run(1) if about_run else lost.pull()
    assert raised.type is error


@pytest.fixture
def announced() -> Pulled:
    """A message with one object, which the link has still to give out."""
    return Pulled(Metadata(run_id=1, message_id=DIGEST, message_type="train").SerializeToString(), (DIGEST,))


def test_an_object_that_is_too_large_is_not_read(
    junk: JunkServer, lost: FleetConnection, announced: Pulled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fleet_client, "MOST_ANSWER_BYTES", 1000)
    junk.body = PullObjectResponse(object_found=True, object_available=True, object_content=bytes(2000)).SerializeToString()
    with pytest.raises(Unreachable, match="not Flower's"):
        lost.fetch(announced, lambda: False)


def test_an_object_that_stops_coming_is_given_up(junk: JunkServer, lost: FleetConnection, announced: Pulled) -> None:
    """Flower's own streams would wait for ever."""
    junk.body, junk.missing_bytes = PullObjectResponse(object_found=True, object_available=True).SerializeToString(), 10
    vars(vars(lost)["_client"])["_client"].timeout = 0.5
    try:
        with pytest.raises(Unreachable, match="ReadTimeout"):
            lost.fetch(announced, lambda: False)
    finally:
        junk.missing_bytes = 0


def test_a_redirect_is_not_followed(junk: JunkServer, lost: FleetConnection) -> None:
    junk.status, junk.headers = 307, {"location": f"{junk.url}/elsewhere"}
    with pytest.raises(Unreachable, match="307"):
        lost.pull()
    assert "/elsewhere" not in junk.paths


def test_nonsense_harms_neither_the_call_nor_the_heartbeat(junk: JunkServer, lost: FleetConnection) -> None:
    junk.body = b"\xff\xfe<html>"
    with pytest.raises(Unreachable, match="not Flower's"):
        lost.pull()
    assert not lost._beat()
    assert lost._heartbeat is not None and lost._heartbeat.is_running


def test_another_version_of_flower_does_not_end_the_process(junk: JunkServer, lost: FleetConnection) -> None:
    junk.status, junk.body = 412, b'{"code": 1001, "detail": "too old"}'
    with pytest.raises(NotWelcome, match="version of Flower"):
        lost.pull()


def test_a_proxy_from_the_environment_is_used(link: LoopbackLink, monkeypatch: pytest.MonkeyPatch) -> None:
    key = new_node_key()
    link.register(key, "behind-a-proxy")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with connect_proxy() as targets:
        monkeypatch.setenv("HTTPS_PROXY", targets[0])
        connection = FleetConnection(link.url, link.tls(), key)
        connection.activate()
        assert connection.pull() is None
        connection.deactivate()
        connection.close()
    assert targets[1:] and set(targets[1:]) == {f"127.0.0.1:{link.settings.superlink_port}"}


IDS = ["a" * 64, "b" * 64]


def test_the_objects_of_a_message() -> None:
    leaf = ObjectTree(object_id=IDS[0])
    assert object_ids(ObjectTree(object_id=IDS[1], children=[leaf, leaf]), IDS[1]) == (IDS[0], IDS[1])


@pytest.mark.parametrize(("tree", "name"), [(ObjectTree(object_id="../x"), "../x"), (ObjectTree(object_id=IDS[0]), IDS[1])])
def test_objects_that_are_none(tree: ObjectTree, name: str) -> None:
    with pytest.raises(ProtocolError):
        object_ids(tree, name)


def test_too_many_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_messages, "MAX_OBJECTS", 1)
    with pytest.raises(ProtocolError, match="more than 1"):
        object_ids(ObjectTree(object_id=IDS[1], children=[ObjectTree(object_id=IDS[0])]), IDS[1])


def test_too_many_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_messages, "MAX_MESSAGE_BYTES", 10)
    guard = ArrivalGuard(never)
    assert guard.counted(b"12345") == b"12345"
    with pytest.raises(ProtocolError, match="more than 10 bytes"):
        guard.counted(b"123456")


@pytest.mark.parametrize(
    "content",
    [b"", b"Message", b"Message  3\x00abc", b"Pickle  0\x00", b"Message " + b"a" * 64 + b" 0\x00", b"ConfigRecord  0\x00", b"\xff\x00"],
)
def test_objects_that_cannot_be_put_together(content: bytes) -> None:
    with pytest.raises(ProtocolError, match=r"cannot be put together|has no content"):
        records_of(IDS[0], {IDS[0]: content})


def test_a_type_that_is_none_of_flowers() -> None:
    header = fleet_messages.Metadata(message_type="agent", message_id=IDS[0]).SerializeToString()
    with pytest.raises(ProtocolError, match="none of Flower's"):
        answer_to(Pulled(header, ()), RecordDict(), 0.0)


def test_tls_is_checked_by_the_context_alone(link: LoopbackLink) -> None:
    """An empty context trusts nobody: nothing falls back to the machine's authorities."""
    connection = FleetConnection(link.url, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), new_node_key())
    with pytest.raises(Unreachable):
        connection.activate()
    connection.close()
