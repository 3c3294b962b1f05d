# SPDX-License-Identifier: Apache-2.0
"""Too much at once: a gateway with small limits, and clients that ask too often, too slowly or without an end."""

import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.common.flower_compat.attacker import FleetAttacker
from tests.common.flower_compat.fleet_bytes import delivery, object_id, reply, session
from tests.server.gateway.conftest import Federation, founded
from tests.server.gateway.coordinator import NODE_OF, RUN_OF, client, gateway, node, tls
from tests.server.gateway.upstream import upstream

SMALL = (
    "Limits(site=Rate(2.0, 40.0), stranger=Rate(0.2, 10.0), enrol=Rate(0.5, 5.0), at_once=2, large_at_once=1, chunk_seconds=1.0,"
    " enrol_seconds=1.0, reply_bytes=1400, reply_objects=4, replies_to_a_message=3)"
)


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    coordinator, north, south = founded(tmp_path_factory.mktemp("crowded"))
    with upstream(coordinator.home) as inner, gateway(coordinator, SMALL):
        yield Federation(coordinator, north, south, inner)


def answer_message(crowded: Federation, site: FleetAttacker, message: str, session_id: str) -> httpx.Response:
    """Hospital south pulls a message, and announces a reply to it."""
    crowded.upstream.answer("pull-messages", delivery(RUN_OF["south"], NODE_OF["south"], message))
    assert site.pull_messages().content
    return announce(crowded, site, message, session_id)


def announce(crowded: Federation, site: FleetAttacker, message: str, session_id: str) -> httpx.Response:
    crowded.upstream.answer("push-messages", session(session_id))
    return site.post("push-messages", reply(site.node_id, RUN_OF["south"], message))


def test_one_reply_may_not_fill_the_disk(crowded: Federation) -> None:
    with node(crowded.coordinator, crowded.south) as site:
        answer_message(crowded, site, "m", "s")
        sizes = [site.push_object(RUN_OF["south"], object_id(str(number)), bytes(400), "s") for number in range(3)]
        announce(crowded, site, "m", "s again")
        again = site.push_object(RUN_OF["south"], object_id("2"), bytes(400), "s again")
        answer_message(crowded, site, "m2", "s2")
        other = site.push_object(RUN_OF["south"], object_id("2"), bytes(400), "s2")
    assert [answer.status_code for answer in sizes] == [200, 200, 413]
    assert sizes[-1].json()["code"] == again.json()["code"] == "REPLY_TOO_LARGE", "a new session is no new room"
    assert other.status_code == 200, "another message has its own"


def test_one_reply_may_not_have_objects_without_end(crowded: Federation) -> None:
    with node(crowded.coordinator, crowded.south) as site:
        answer_message(crowded, site, "small", "tiny")
        crowded.upstream.answer("push-object", b"", 503)
        lost = [site.push_object(RUN_OF["south"], object_id("0"), b"x", "tiny").status_code for _ in range(5)]
        crowded.upstream.answer("push-object", b"")
        codes = [site.push_object(RUN_OF["south"], object_id(str(number)), b"x", "tiny").status_code for number in range(5)]
    assert (lost, codes) == ([503] * 5, [200, 200, 200, 200, 413]), "what the SuperLink did not take is not counted"


def test_one_message_may_not_be_answered_without_end(crowded: Federation) -> None:
    with node(crowded.coordinator, crowded.south) as site:
        answers = [
            answer_message(crowded, site, "often", "o1"),
            *(announce(crowded, site, "often", f"o{number}") for number in range(2, 5)),
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 413]
    assert answers[-1].json()["code"] == "TOO_MANY_REPLIES"


def test_a_site_that_asks_too_often_is_told_when_to_come_back(crowded: Federation) -> None:
    with client(crowded.coordinator, crowded.north) as http:
        answers = [http.get("/v1/wardround/time") for _ in range(80)]
    refused = [one for one in answers if one.status_code == 429]
    assert answers[0].status_code == 200 and refused
    assert refused[0].json()["code"] == "TOO_MANY_REQUESTS" and int(refused[0].headers["retry-after"]) >= 1
    with client(crowded.coordinator, crowded.south) as other:
        assert other.get("/v1/wardround/time").status_code == 200, "others are not made to wait"


def test_strangers_have_a_limit_of_their_own(crowded: Federation) -> None:
    with client(crowded.coordinator) as http:
        codes = [http.get("/v1/wardround/studies").status_code for _ in range(30)]
        assert codes[0] == 401 and codes[-1] == 429
        assert http.get("/health").status_code == 200, "whoever watches the gateway is still answered"
    time.sleep(0.3)
    with client(crowded.coordinator, crowded.south) as site:
        assert site.get("/v1/wardround/time").status_code == 200, "a certificate is not counted by its address"


def test_enrolment_is_the_strictest(crowded: Federation) -> None:
    with client(crowded.coordinator) as http:
        codes = [http.post("/v1/wardround/enrol", content=b"{}").status_code for _ in range(12)]
    assert codes[:5] == [400] * 5 and 429 in codes[5:]


def test_a_body_that_does_not_come_is_not_waited_for(crowded: Federation) -> None:
    time.sleep(2.1)  # until enrolment has a token again
    answer = _unfinished(crowded, b"POST /v1/wardround/enrol HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    assert answer.startswith(b"HTTP/1.1 400 ") and b"BODY_TOO_SLOW" in answer


def test_only_so_many_requests_of_one_site_are_served_at_once(crowded: Federation) -> None:
    port, context = crowded.coordinator.home.settings.listen_port, tls(crowded.coordinator, crowded.south)
    head = b"POST /v1/wardround/approvals HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    slow = [context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="127.0.0.1") for _ in range(2)]
    try:
        for one in slow:
            one.sendall(head)
        time.sleep(0.3)
        with client(crowded.coordinator, crowded.south) as http:
            assert http.get("/v1/wardround/time").json()["code"] == "TOO_MANY_REQUESTS"
            time.sleep(1.2)  # the two are too slow: they are answered, and others served
            assert http.get("/v1/wardround/time").status_code == 200
    finally:
        for one in slow:
            one.close()


def test_large_bodies_of_one_site_are_read_one_after_the_other(crowded: Federation) -> None:
    """The clock of the second begins when the first, which never comes, is given up: until then it is not read and takes no memory."""
    port, context = crowded.coordinator.home.settings.listen_port, tls(crowded.coordinator, crowded.south)
    head = b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nContent-Length: 2097152\r\n\r\n"
    first, second = (context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="127.0.0.1") for _ in range(2))
    with first, second:
        first.sendall(head)
        time.sleep(0.1)
        second.sendall(head)
        assert first.recv(4096).startswith(b"HTTP/1.1 400 "), "too slow"
        second.settimeout(0.6)
        with pytest.raises(TimeoutError):
            second.recv(4096)
        second.settimeout(10)
        assert second.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_a_client_that_leaves_in_the_middle_disturbs_nobody(crowded: Federation) -> None:
    port, context = crowded.coordinator.home.settings.listen_port, tls(crowded.coordinator, crowded.south)
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="127.0.0.1") as secure:
        secure.sendall(b"POST /v1/wardround/approvals HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nhalf")
    crowded.logged(code="CLIENT_GONE", site="south")


def test_many_connections_without_a_certificate_leave_room_for_sites(crowded: Federation) -> None:
    port, context = crowded.coordinator.home.settings.listen_port, tls(crowded.coordinator)
    held = []
    try:
        for _ in range(80):
            plain = socket.create_connection(("127.0.0.1", port), 10)
            held.append(context.wrap_socket(plain, server_hostname="127.0.0.1"))
        time.sleep(0.2)
        with pytest.raises(httpx.TransportError), client(crowded.coordinator) as http:
            http.get("/health")
        with client(crowded.coordinator, crowded.south) as site:
            assert site.get("/v1/wardround/time").status_code == 200
    finally:
        for one in held:
            one.close()


def _unfinished(federation: Federation, request: bytes) -> bytes:
    port, context = federation.coordinator.home.settings.listen_port, tls(federation.coordinator)
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port), 10), server_hostname="127.0.0.1") as secure:
        secure.sendall(request)
        answer = b""
        while not answer.endswith(b"}") and (part := secure.recv(65536)):
            answer += part
        return answer
