# SPDX-License-Identifier: Apache-2.0
"""Whose run, whose message, whose object, whose session: the rules of `server.gateway.checks`, each broken on purpose by a real request."""

import hashlib
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from common.flower_compat.large_objects import IN_A_FILE, objects_folder
from server.offers import set_withdrawn
from server.run_registry import RunRegistry
from tests.common.flower_compat.attacker import FleetAttacker
from tests.common.flower_compat.fleet_bytes import delivery, object_id, pulled_object, pushed_object, reply, session, stored
from tests.server.gateway.conftest import Federation, founded
from tests.server.gateway.coordinator import RUN_OF, approval, client, gateway, node, start_record
from tests.server.gateway.upstream import upstream

NORTH, SOUTH, BOTH, NOBODY = RUN_OF["north"], RUN_OF["south"], RUN_OF["both"], RUN_OF["nobody"]
UNKNOWN_RUN = 12345


def refused(answer: httpx.Response, code: str, status: int = 403) -> bool:
    return (answer.status_code, answer.json()["code"]) == (status, code)


def deliver(federation: Federation, site: FleetAttacker, run: int, *names: str) -> httpx.Response:
    """Let the SuperLink have a message for this node; the site pulls it."""
    federation.upstream.answer("pull-messages", delivery(run, site.node_id, *names))
    answer = site.pull_messages()
    federation.upstream.answer("pull-messages", b"")
    return answer


def open_session(federation: Federation, site: FleetAttacker, run: int, message: str, name: str) -> httpx.Response:
    federation.upstream.answer("push-messages", session(name))
    return site.post("push-messages", reply(site.node_id, run, message))


# ---- runs


@pytest.mark.parametrize("run", [SOUTH, NOBODY, UNKNOWN_RUN, 0, 2**64 - 1])
def test_a_run_that_the_site_did_not_approve(federation: Federation, north: FleetAttacker, run: int) -> None:
    for answer in (
        north.get_run(run),
        north.pull_object(run, object_id("x")),
        north.confirm(run, object_id("x")),
        north.push_object(run, object_id("x"), b"x", "session"),
        north.post("push-messages", reply(north.node_id, run, "x")),
    ):
        assert refused(answer, "RUN_NOT_APPROVED")
    assert federation.upstream.seen == []


def test_a_run_that_the_site_approved(federation: Federation, north: FleetAttacker) -> None:
    assert north.get_run(NORTH).status_code == north.get_run(BOTH).status_code == 200
    assert len(federation.upstream.took("get-run")) == 2


def test_an_approval_counts_at_once_and_so_does_its_end(federation: Federation, north: FleetAttacker) -> None:
    """The database is asked again as soon as anybody has written to it."""
    coordinator, study = federation.coordinator, '{"study":"777"}'
    coordinator.start(777, ("north",), ())
    assert refused(north.get_run(777), "RUN_NOT_APPROVED")
    record = start_record(study, ("north",))
    coordinator.record(federation.north, approval(federation.north, record))
    assert north.get_run(777).status_code == 200
    coordinator.record(federation.north, approval(federation.north, record, "rejected"))
    assert refused(north.get_run(777), "RUN_NOT_APPROVED")
    coordinator.record(federation.north, approval(federation.north, record))
    assert north.get_run(777).status_code == 200
    run = RunRegistry(coordinator.state).find(777)
    assert run is not None
    set_withdrawn(coordinator.state, run.run_id, True)
    assert refused(north.get_run(777), "RUN_NOT_APPROVED")


# ---- messages


def test_a_message_of_an_approved_run_is_delivered_as_it_is(federation: Federation, north: FleetAttacker) -> None:
    answer = deliver(federation, north, NORTH, "m1", "a", "b")
    assert answer.content == delivery(NORTH, north.node_id, "m1", "a", "b")
    rows = _rows(federation, "SELECT site, flower_run_id, object_id FROM addressed WHERE message_id = ?", "m1")
    assert sorted(rows) == sorted(("north", str(NORTH), one) for one in ("", *(object_id(name) for name in ("m1", "a", "b"))))


@pytest.mark.parametrize("run", [SOUTH, NOBODY, UNKNOWN_RUN])
def test_a_message_of_another_run_is_withheld(federation: Federation, north: FleetAttacker, run: int) -> None:
    answer = deliver(federation, north, run, "withheld", "w")
    assert (answer.status_code, answer.content) == (200, b"")
    federation.logged(code="WITHHELD", run=str(run), site="north", status=200)
    assert _rows(federation, "SELECT 1 FROM addressed WHERE message_id = ?", "withheld") == []


def test_a_message_for_another_node_is_withheld(federation: Federation, north: FleetAttacker, south: FleetAttacker) -> None:
    federation.upstream.answer("pull-messages", delivery(BOTH, south.node_id, "for-south"))
    assert north.pull_messages().content == b""
    assert refused(north.pull_object(BOTH, object_id("for-south")), "NOT_ADDRESSED")


@pytest.mark.parametrize("content", [b"\xff\xff", delivery(NORTH, 1, "m")[:-3]])
def test_what_the_superlink_should_not_say_goes_no_further(federation: Federation, north: FleetAttacker, content: bytes) -> None:
    federation.upstream.answer("pull-messages", content)
    assert refused(north.pull_messages(), "SUPERLINK_DOWN", 502)


# ---- objects


def test_a_site_gets_the_objects_of_its_messages_and_no_others(federation: Federation, north: FleetAttacker, south: FleetAttacker) -> None:
    federation.upstream.answer("pull-object", b"content")
    deliver(federation, south, BOTH, "s1", "shared", "souths-own")
    deliver(federation, north, BOTH, "n1", "shared", "norths-own")
    for name in ("n1", "shared", "norths-own"):
        assert north.pull_object(BOTH, object_id(name)).content == b"content"
    for name in ("s1", "souths-own", "guessed"):
        assert refused(north.pull_object(BOTH, object_id(name)), "NOT_ADDRESSED")
    for name in ("n1", "norths-own"):
        assert refused(south.pull_object(BOTH, object_id(name)), "NOT_ADDRESSED")
    assert refused(north.pull_object(NORTH, object_id("norths-own")), "NOT_ADDRESSED"), "the object of another run"
    assert len(federation.upstream.took("pull-object")) == 3


def test_a_large_object_comes_from_its_file_and_only_to_whom_it_belongs(
    federation: Federation, north: FleetAttacker, south: FleetAttacker
) -> None:
    content = bytes(range(256)) * 4_000
    folder = objects_folder(federation.coordinator.home.superlink_database)
    folder.mkdir(exist_ok=True)
    for name in ("large", "anothers-large"):
        (folder / object_id(name)).write_bytes(content)
    deliver(federation, north, BOTH, "m5", "large")
    deliver(federation, south, SOUTH, "m6", "anothers-large")
    answer = north.pull_object(BOTH, object_id("large"))
    assert pulled_object(answer.content) == content
    assert answer.headers["content-length"] == str(len(answer.content))
    assert federation.upstream.took("pull-object") == []
    assert refused(north.pull_object(SOUTH, object_id("anothers-large")), "RUN_NOT_APPROVED")
    assert refused(north.pull_object(BOTH, object_id("anothers-large")), "NOT_ADDRESSED")
    assert refused(south.pull_object(BOTH, object_id("large")), "NOT_ADDRESSED")
    assert federation.logged(object=object_id("large")[:16], status=200)["bytes_out"] == len(answer.content)


def test_confirmed_objects_are_no_longer_given_out(federation: Federation, north: FleetAttacker) -> None:
    deliver(federation, north, NORTH, "c1", "part")
    assert north.confirm(NORTH, object_id("c1")).status_code == 200
    assert refused(north.pull_object(NORTH, object_id("part")), "NOT_ADDRESSED")
    assert north.confirm(NORTH, object_id("c1")).status_code == 200, "asked again, because the answer was lost"
    assert _rows(federation, "SELECT object_id FROM addressed WHERE message_id = ?", "c1") == [("",)]


def test_a_confirmation_that_the_superlink_refuses_changes_nothing(federation: Federation, north: FleetAttacker) -> None:
    deliver(federation, north, NORTH, "c2", "part")
    federation.upstream.answer("confirm-message-received", b"no", 500)
    assert north.confirm(NORTH, object_id("c2")).status_code == 500
    assert north.pull_object(NORTH, object_id("part")).status_code == 200


def test_only_ones_own_message_may_be_confirmed(federation: Federation, north: FleetAttacker, south: FleetAttacker) -> None:
    """Confirming deletes; objects are shared between messages, so the id of a part is no message."""
    deliver(federation, south, BOTH, "s2", "shared")
    deliver(federation, north, BOTH, "n2", "shared")
    for name in ("s2", "shared", "guessed"):
        assert refused(north.confirm(BOTH, object_id(name)), "NOT_ADDRESSED")
    assert federation.upstream.took("confirm-message-received") == []


# ---- replies


def test_a_reply_to_ones_own_message(federation: Federation, north: FleetAttacker) -> None:
    deliver(federation, north, NORTH, "r1", "part")
    north.confirm(NORTH, object_id("r1"))
    assert open_session(federation, north, NORTH, "r1", "session-1").status_code == 200
    assert north.push_object(NORTH, object_id("update"), b"u", "session-1").status_code == 200
    assert open_session(federation, north, NORTH, "r1", "session-2").status_code == 200, "pushed again"


def test_a_reply_to_anothers_message(federation: Federation, north: FleetAttacker, south: FleetAttacker) -> None:
    deliver(federation, south, BOTH, "s3")
    for name in ("s3", "guessed"):
        assert refused(north.post("push-messages", reply(north.node_id, BOTH, name)), "NOT_ADDRESSED")
    deliver(federation, north, NORTH, "n3")
    assert refused(north.post("push-messages", reply(north.node_id, BOTH, "n3")), "NOT_ADDRESSED"), "a message of another run"
    assert federation.upstream.took("push-messages") == []


def test_a_message_that_answers_nothing_would_be_an_instruction_to_another_site(federation: Federation, north: FleetAttacker) -> None:
    deliver(federation, north, BOTH, "n4")
    made_up = reply(north.node_id, BOTH, "n4", dst_node_id=federation.south.node_id, reply_to_message_id="")
    assert refused(north.post("push-messages", made_up), "NOT_ADDRESSED")


def test_a_reply_in_the_name_of_another_node(federation: Federation, north: FleetAttacker) -> None:
    deliver(federation, north, BOTH, "n5")
    assert refused(north.post("push-messages", reply(north.node_id, BOTH, "n5", src_node_id=federation.south.node_id)), "WRONG_NODE")


def test_exactly_one_reply_with_its_own_tree(federation: Federation, north: FleetAttacker) -> None:
    deliver(federation, north, BOTH, "n6")
    two, none, other, full = (reply(north.node_id, BOTH, "n6") for _ in range(4))
    two.messages_list.append(reply(north.node_id, SOUTH, "n6").messages_list[0])
    del none.message_object_trees[:]
    other.message_object_trees[0].object_id = object_id("another")
    full.messages_list[0].content.items.add(key="x")
    crowd = reply(north.node_id, BOTH, "n6", names=["reply", *(f"part {number}" for number in range(9000))])
    upper = reply(north.node_id, BOTH, "n6", message_id=object_id("reply").upper())
    upper.message_object_trees[0].object_id = object_id("reply").upper()
    for request in (two, none, other, full, crowd, upper):
        assert refused(north.post("push-messages", request), "MALFORMED", 400)
    assert federation.upstream.seen[1:] == []


# ---- sessions


def test_objects_go_only_into_ones_own_session(federation: Federation, north: FleetAttacker, south: FleetAttacker) -> None:
    deliver(federation, south, BOTH, "s7")
    open_session(federation, south, BOTH, "s7", "souths-session")
    deliver(federation, north, BOTH, "n7")
    open_session(federation, north, BOTH, "n7", "norths-session")
    for wrong in ("souths-session", "guessed", ""):
        assert refused(north.push_object(BOTH, object_id("u"), b"u", wrong), "NOT_YOUR_SESSION")
    assert refused(north.push_object(NORTH, object_id("u"), b"u", "norths-session"), "NOT_YOUR_SESSION"), "a session of another run"
    assert north.push_object(BOTH, object_id("u"), b"u", "norths-session").status_code == 200
    assert len(federation.upstream.took("push-object")) == 1


# ---- passing on


def test_what_flower_refuses_is_passed_back(federation: Federation, north: FleetAttacker) -> None:
    federation.upstream.answer("get-run", b'{"code": 2007}', 412)
    answer = north.get_run(NORTH)
    assert (answer.status_code, answer.json()) == (412, {"code": 2007})


def test_bodies_arrive_byte_for_byte(federation: Federation, north: FleetAttacker) -> None:
    """5 MiB each way, which is what Flower cuts a tensor into."""
    chunk = os.urandom(5 << 20)
    deliver(federation, north, NORTH, "big", "chunk")
    open_session(federation, north, NORTH, "big", "big-session")
    federation.upstream.answer("pull-object", chunk)
    assert north.pull_object(NORTH, object_id("chunk")).content == chunk
    assert north.push_object(NORTH, object_id("chunk"), chunk, "big-session").status_code == 200
    assert chunk in federation.upstream.took("push-object")[0].body


def test_a_large_object_goes_into_its_file_and_stays_only_if_the_superlink_takes_it(federation: Federation, north: FleetAttacker) -> None:
    folder = objects_folder(federation.coordinator.home.superlink_database)
    folder.mkdir(exist_ok=True)
    deliver(federation, north, NORTH, "filed")
    open_session(federation, north, NORTH, "filed", "file-session")
    content, other = (os.urandom(1 << 20) for _ in range(2))
    name, wrong = hashlib.sha256(content).hexdigest(), object_id("not its digest")

    federation.upstream.answer("push-object", stored(False))
    assert north.push_object(NORTH, name, content, "file-session").status_code == 200
    assert not (folder / name).exists(), "the SuperLink did not take it"
    federation.upstream.answer("push-object", b"", 503)
    north.push_object(NORTH, name, content, "file-session")
    assert not (folder / name).exists(), "the SuperLink was away"

    federation.upstream.answer("push-object", stored(True))
    assert north.push_object(NORTH, name, content, "file-session").status_code == 200
    assert (folder / name).read_bytes() == content
    assert pushed_object(federation.upstream.took("push-object")[-1].body) == (name, IN_A_FILE, "file-session")

    north.push_object(NORTH, wrong, other, "file-session")
    assert not (folder / wrong).exists() and other in federation.upstream.took("push-object")[-1].body, "Flower refuses it"
    federation.upstream.answer("push-object", stored(False))
    north.push_object(NORTH, name, content, "file-session")
    assert (folder / name).read_bytes() == content, "what was there before stays"


def test_a_site_cannot_say_that_its_object_is_in_a_file(federation: Federation, north: FleetAttacker) -> None:
    deliver(federation, north, NORTH, "claimed")
    open_session(federation, north, NORTH, "claimed", "claim-session")
    asked = len(federation.upstream.took("push-object"))
    assert refused(north.push_object(NORTH, object_id("u"), IN_A_FILE, "claim-session"), "MALFORMED", 400)
    assert len(federation.upstream.took("push-object")) == asked


def test_connections_to_the_superlink_are_kept(federation: Federation, north: FleetAttacker, south: FleetAttacker) -> None:
    for _ in range(20):
        north.heartbeat()
        south.heartbeat()
    assert len({one.port for one in federation.upstream.seen}) == 1


def test_requests_in_parallel_are_all_answered(federation: Federation) -> None:
    """Eight threads at once, as Flower's object helpers ask."""

    def work(_number: int) -> list[int]:
        with node(federation.coordinator, federation.north) as site:
            return [site.get_run(NORTH).status_code for _ in range(10)]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [[200] * 10] * 8


# ---- restarts and failures, with a coordinator of its own


def test_a_restarted_gateway_knows_what_belongs_to_whom_and_failures_are_told(tmp_path: Path) -> None:
    coordinator, hospital, other = founded(tmp_path)
    with ExitStack() as behind:
        federation = Federation(coordinator, hospital, other, behind.enter_context(upstream(coordinator.home)))
        with gateway(coordinator), node(coordinator, hospital) as site:
            deliver(federation, site, BOTH, "m", "part")
            deliver(federation, site, BOTH, "answered")
            open_session(federation, site, BOTH, "answered", "session")
        with gateway(coordinator) as process, node(coordinator, hospital) as site, node(coordinator, other) as thief:
            assert site.pull_object(BOTH, object_id("part")).status_code == 200
            assert site.push_object(BOTH, object_id("u"), b"u", "session").status_code == 200
            assert refused(thief.pull_object(BOTH, object_id("part")), "NOT_ADDRESSED")
            assert refused(thief.push_object(BOTH, object_id("u"), b"u", "session"), "NOT_YOUR_SESSION")
            behind.close()
            _without_superlink(federation, site)
            _damaged_database(federation, site)
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) in (0, -signal.SIGTERM), "stops while connections are open"


def _without_superlink(federation: Federation, site: FleetAttacker) -> None:
    assert refused(site.heartbeat(), "SUPERLINK_DOWN", 502)
    time.sleep(1.1)  # the answer to /health is a second old at most
    with client(federation.coordinator) as anybody:
        answer = anybody.get("/health")
    assert (answer.status_code, answer.json()) == (503, {"gateway": "up", "superlink": "down"})


def _damaged_database(federation: Federation, site: FleetAttacker) -> None:
    path = federation.coordinator.home.state
    path.rename(path.with_suffix(".away"))
    try:
        path.write_bytes(b"no database at all" * 1000)
        time.sleep(1.1)
        assert refused(site.get_run(NOBODY), "STORAGE", 503)
    finally:
        path.with_suffix(".away").replace(path)


def _rows(federation: Federation, query: str, *names: str) -> list[tuple[object, ...]]:
    with federation.coordinator.state.reading() as database:
        return [tuple(row) for row in database.execute(query, [object_id(name) for name in names]).fetchall()]
