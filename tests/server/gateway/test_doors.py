# SPDX-License-Identifier: Apache-2.0
"""Who gets in: certificates, paths, methods, headers, bodies. Real TLS, a real gateway process, a real server behind it."""

import base64
import json
import socket
import ssl
import time
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from common.crypto.certificates import Authority
from common.flower_compat.fleet_records import CALLS
from server.authority import registry
from tests.server.gateway.conftest import Federation
from tests.server.gateway.coordinator import Hospital, client, forged, node, tls

DAY = 86400.0
STRANGE_TLS = (httpx.ReadError, httpx.ConnectError, httpx.RemoteProtocolError, httpx.WriteError)
CLOSED = ["register-node", "unregister-node", "get-fab"]


def post(federation: Federation, path: str, hospital: Hospital | None, body: bytes = b"", **headers: str) -> httpx.Response:
    with client(federation.coordinator, hospital) as http:
        return http.post(path, content=body, headers=headers)


def raw(federation: Federation, request: bytes, hospital: Hospital | None) -> bytes:
    """Send bytes as they are over TLS, and read until the other end closes or has answered."""
    port = federation.coordinator.home.settings.listen_port
    with (
        socket.create_connection(("127.0.0.1", port), 10) as plain,
        tls(federation.coordinator, hospital).wrap_socket(plain, server_hostname="127.0.0.1") as secure,
    ):
        secure.sendall(request)
        answer = b""
        while not (b"\r\n\r\n" in answer and answer.endswith((b"}", b"received."))) and (part := secure.recv(65536)):
            answer += part
        return answer


# ---- certificates


def test_an_approved_site_gets_through(federation: Federation) -> None:
    with node(federation.coordinator, federation.north) as north:
        assert north.heartbeat().status_code == 200
    assert len(federation.upstream.took("send-node-heartbeat")) == 1


@pytest.mark.parametrize("name", [*CALLS, *CLOSED])
def test_fleet_without_a_certificate_is_401(federation: Federation, name: str) -> None:
    answer = post(federation, f"/v1/fleet/{name}", None)
    assert (answer.status_code, answer.json()["code"]) == (401, "NO_CERTIFICATE")
    assert federation.upstream.seen == []


@pytest.mark.parametrize(
    ("method", "name"), [("GET", "studies"), ("GET", "time"), ("GET", "receipts"), ("POST", "renew"), ("POST", "approvals")]
)
def test_own_calls_without_a_certificate_are_401(federation: Federation, method: str, name: str) -> None:
    with client(federation.coordinator) as http:
        assert http.request(method, f"/v1/wardround/{name}").status_code == 401


def test_a_certificate_of_an_unknown_authority_ends_the_handshake(federation: Federation, tmp_path: Path) -> None:
    stranger = Authority.self_signed(ec.generate_private_key(ec.SECP384R1()), time.time())
    impostor = forged(federation.coordinator, stranger, tmp_path / "impostor", "north")
    with pytest.raises(STRANGE_TLS):
        post(federation, "/v1/fleet/pull-messages", impostor)
    assert "a client certificate was refused" in (federation.coordinator.home.logs / "gateway.log").read_text()


def test_an_expired_certificate_ends_the_handshake(federation: Federation, tmp_path: Path) -> None:
    old = forged(federation.coordinator, federation.coordinator.authority, tmp_path / "old", "north", time.time() - 2 * DAY)
    with pytest.raises(STRANGE_TLS):
        post(federation, "/v1/fleet/pull-messages", old)
    assert "certificate has expired" in (federation.coordinator.home.logs / "gateway.log").read_text()


def test_a_certificate_that_was_never_recorded_is_401(federation: Federation, tmp_path: Path) -> None:
    """Signed by our own authority, in the name of a site, and still unknown to the register."""
    unknown = forged(federation.coordinator, federation.coordinator.authority, tmp_path / "unknown", "north")
    answer = post(federation, "/v1/fleet/pull-messages", unknown)
    assert (answer.status_code, answer.json()["code"]) == (401, "CERTIFICATE_REFUSED")
    assert "not known" in answer.json()["message"]


def test_the_servers_own_certificate_is_no_clients(federation: Federation, tmp_path: Path) -> None:
    home = federation.coordinator.home
    server = Hospital("server", federation.north.keys, home.certificate, home.certificate_key, 0)
    with pytest.raises(STRANGE_TLS):
        post(federation, "/v1/fleet/pull-messages", server)


def test_revocation_counts_for_the_next_request_on_an_open_connection(federation: Federation, tmp_path: Path) -> None:
    guest = federation.coordinator.hospital("guest", tmp_path, node_id=99)
    with node(federation.coordinator, guest) as site:
        assert site.heartbeat().status_code == 200
        first = federation.upstream.took("send-node-heartbeat")[-1]
        registry(federation.coordinator.home).revoke("guest")
        answer = site.heartbeat()
        assert (answer.status_code, answer.json()["code"]) == (401, "CERTIFICATE_REFUSED")
        assert "revoked" in answer.json()["message"]
    assert federation.upstream.took("send-node-heartbeat") == [first]


def test_a_certificate_that_ends_while_the_connection_is_open(federation: Federation, tmp_path: Path) -> None:
    short = federation.coordinator.hospital("short", tmp_path, node_id=98)
    with node(federation.coordinator, short) as site:
        assert site.heartbeat().status_code == 200
        with federation.coordinator.state.writing() as database:
            database.execute("UPDATE site_certificate SET not_after = ? WHERE site = 'short'", (time.time() - 1,))
        assert "expired" in site.heartbeat().json()["message"]


def test_an_old_tls_version_is_not_spoken(federation: Federation) -> None:
    context = tls(federation.coordinator, federation.north)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with httpx.Client(base_url=federation.coordinator.url, verify=context, trust_env=False) as http, pytest.raises(STRANGE_TLS):
        http.get("/health")


# ---- node keys


def test_ones_certificate_with_anothers_node_key(federation: Federation) -> None:
    for certificate, key in ((federation.north, federation.south), (federation.south, federation.north)):
        with node(federation.coordinator, certificate, signer=key) as thief:
            for answer in (thief.activate(), thief.heartbeat(), thief.pull_messages()):
                assert (answer.status_code, answer.json()["code"]) == (403, "WRONG_NODE_KEY")
    assert federation.upstream.seen == []


def test_ones_own_keys_with_anothers_node_id(federation: Federation) -> None:
    with node(federation.coordinator, federation.north) as site:
        site.node_id = federation.south.node_id
        for answer in (site.heartbeat(), site.pull_messages(), site.deactivate()):
            assert (answer.status_code, answer.json()["code"]) == (403, "WRONG_NODE")
    assert federation.upstream.seen == []


def test_nobody_goes_online_whose_node_id_is_not_written_down_yet(federation: Federation, tmp_path: Path) -> None:
    """Flower would let it, and each of its next calls would be refused as that of a wrong node."""
    late = federation.coordinator.hospital("late", tmp_path)
    with node(federation.coordinator, late) as site:
        answer = site.activate()
        assert (answer.status_code, answer.json()["code"]) == (425, "NOT_REGISTERED")
        assert answer.headers["retry-after"] == "1"
        assert federation.upstream.seen == []
        registry(federation.coordinator.home).set_node_id("late", 97)
        assert site.activate().status_code == 200


def test_activation_of_anothers_key_under_ones_own_header(federation: Federation) -> None:
    from tests.common.flower_compat.fleet_bytes import activation

    with node(federation.coordinator, federation.north) as site:
        answer = site.post("activate-node", activation(federation.south.keys.public().node.encode()))
        assert (answer.status_code, answer.json()["code"]) == (403, "WRONG_NODE_KEY")


def test_a_node_key_is_needed(federation: Federation) -> None:
    body = b""
    assert post(federation, "/v1/fleet/pull-messages", federation.north, body).json()["code"] == "WRONG_NODE_KEY"
    answer = post(federation, "/v1/fleet/pull-messages", federation.north, body, **{"flwr-public-key": "no base64!"})
    assert (answer.status_code, answer.json()["code"]) == (400, "BAD_HEADERS")


# ---- paths and methods


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/start-run",
        "/v1/control/list-nodes",
        "/v1/control/register-node",
        "/v1/runtime/acquire-task",
        "/v1/runtime/pull-messages",
        *(f"/v1/fleet/{name}" for name in CLOSED),
        "/v1/fleet/pull-messages/",
        "/v1/fleet//pull-messages",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/pull%2dmessages",
        "/v1/fleet/pull-messages%00",
        "/v1/fleet/pull-messages;x=1",
        "/v1/fleet/PULL-MESSAGES",
        "/v1/wardround/",
        "/v1/wardround/../control/start-run",
    ],
)
def test_every_other_path_below_v1_is_forbidden(federation: Federation, path: str) -> None:
    request = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
    answer = raw(federation, request, federation.north)
    assert answer.startswith(b"HTTP/1.1 403 ")
    assert b"CALL_FORBIDDEN" in answer
    assert federation.upstream.seen == []


@pytest.mark.parametrize(
    "path",
    [
        "/docs",
        "/openapi.json",
        "/",
        "//v1/fleet/pull-messages",
        "/v1",
        "/V1/fleet/pull-messages",
        "/health/",
        "https://127.0.0.1/docs",
        "*",
    ],
)
def test_every_other_path_is_not_there(federation: Federation, path: str) -> None:
    answer = raw(federation, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode(), federation.north)
    assert answer.startswith(b"HTTP/1.1 404 ")
    assert federation.upstream.seen == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "post"])
def test_other_methods(federation: Federation, method: str) -> None:
    answer = raw(
        federation, f"{method} /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode(), federation.north
    )
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert federation.upstream.seen == []


def test_head_is_not_taken_either(federation: Federation) -> None:
    with client(federation.coordinator, federation.north) as http:
        assert http.head("/v1/wardround/studies").status_code == 405


def test_a_websocket_is_not_opened(federation: Federation) -> None:
    request = b"GET /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    assert raw(federation, request, federation.north).startswith(b"HTTP/1.1 405 ")


def test_a_query_is_no_part_of_a_fleet_call(federation: Federation) -> None:
    with node(federation.coordinator, federation.north) as site:
        answer = site.post("pull-messages?run=1", b"")
    assert (answer.status_code, answer.json()["code"]) == (400, "BAD_QUERY")


def test_health_says_only_whether_the_superlink_answers(federation: Federation) -> None:
    with client(federation.coordinator) as http:
        answer = http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"gateway": "up", "superlink": "up"})
    assert "server" not in answer.headers


# ---- headers


def fleet_request(federation: Federation, *lines: bytes, body: bytes = b"", name: str = "pull-messages") -> bytes:
    """A raw Fleet request of north with these header lines more."""
    key = base64.b64encode(federation.north.keys.public().node.encode())
    head = [b"POST /v1/fleet/" + name.encode() + b" HTTP/1.1", b"Host: x", b"flwr-public-key: " + key, *lines]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


@pytest.mark.parametrize("name", ["flwr-public-key", "flwr-signature", "flwr-timestamp", "Flwr-Public-Key", "flwr-package-version"])
def test_a_header_that_counts_may_not_come_twice(federation: Federation, name: str) -> None:
    other = base64.b64encode(federation.south.keys.public().node.encode())
    twice = [name.encode() + b": " + other] * 2
    answer = raw(federation, fleet_request(federation, *twice, b"Content-Length: 0"), federation.north)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"BAD_HEADERS" in answer
    assert federation.upstream.seen == []


@pytest.mark.parametrize(
    "lines",
    [
        (b"Transfer-Encoding: chunked",),
        (b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        (b"Transfer-Encoding: identity", b"Content-Length: 5"),
        (b"Transfer-Encoding: gzip, chunked",),
        (b"Content-Length: 5", b"Content-Length: 6"),
        (b"Content-Length: +5",),
        (b"Content-Length: -1",),
        (),
    ],
)
def test_only_one_framing_is_taken(federation: Federation, lines: tuple[bytes, ...]) -> None:
    body = b"5\r\nhello\r\n0\r\n\r\n"
    answer = raw(federation, fleet_request(federation, *lines, body=body), federation.north)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"BAD_HEADERS" in answer or b"Invalid HTTP request" in answer
    assert federation.upstream.seen == []


def test_a_request_hidden_behind_another_is_judged_as_its_own(federation: Federation) -> None:
    """What follows a body is a request of its own: it is checked like every other."""
    hidden = b"POST /v1/control/start-run HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"
    answer = raw(federation, fleet_request(federation, b"Content-Length: 0") + hidden, federation.north)
    assert federation.upstream.took("pull-messages") == [] and b"WRONG_NODE" in answer
    assert not [one for one in federation.upstream.seen if "control" in one.path]


def test_only_flowers_own_headers_reach_the_superlink(federation: Federation) -> None:
    extra = {
        "flwr-superexec-signature": "x",
        "flwr-task-token": "x",
        "x-forwarded-for": "1.2.3.4",
        "cookie": "a=b",
        "authorization": "Bearer x",
    }
    with node(federation.coordinator, federation.north) as site:
        site._http.headers.update(extra)
        answer = site.heartbeat()
    assert answer.status_code == 200
    assert "x-inner" not in answer.headers
    names = {name.decode() for name, _ in federation.upstream.took("send-node-heartbeat")[0].headers}
    assert {"flwr-public-key", "flwr-signature", "flwr-timestamp", "flwr-package-version"} <= names
    assert names.isdisjoint(extra)


def test_a_forwarded_address_is_not_believed(federation: Federation) -> None:
    with client(federation.coordinator, federation.north) as http:
        http.get("/nothing-there", headers={"x-forwarded-for": "203.0.113.9", "forwarded": "for=203.0.113.9"})
    assert federation.logged(path="/nothing-there")["address"] == "127.0.0.1"


# ---- bodies


@pytest.mark.parametrize(
    ("path", "limit"),
    [
        ("/v1/fleet/push-object", 17 << 20),
        ("/v1/fleet/push-messages", 1 << 20),
        ("/v1/wardround/approvals", 4 << 20),
        ("/v1/wardround/renew", 4 << 20),
    ],
)
def test_a_body_over_the_limit_is_413(federation: Federation, path: str, limit: int) -> None:
    answer = post(federation, path, federation.north, bytes(limit + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "BODY_TOO_LARGE")
    assert federation.upstream.seen == []


def test_enrolment_takes_16_kib(federation: Federation) -> None:
    assert post(federation, "/v1/wardround/enrol", None, b"{}" + b" " * (16 * 1024 - 2)).json()["code"] == "MALFORMED"
    answer = post(federation, "/v1/wardround/enrol", None, b" " * (16 * 1024 + 1))
    assert (answer.status_code, answer.json()["code"]) == (413, "BODY_TOO_LARGE")


def test_a_size_that_no_number_holds(federation: Federation) -> None:
    answer = raw(federation, fleet_request(federation, b"Content-Length: " + b"9" * 19), federation.north)
    assert answer.startswith((b"HTTP/1.1 413 ", b"HTTP/1.1 400 "))


@pytest.mark.parametrize("name", list(CALLS))
@pytest.mark.parametrize("body", [b"\xff" * 40, b"\x0a\xff\xff\xff\xff\x0f", b"<html>", b"\x0a" * 5000])
def test_malformed_protobuf_is_400(federation: Federation, name: str, body: bytes) -> None:
    with node(federation.coordinator, federation.north) as site:
        answer = site.post(name, body)
    assert (answer.status_code, answer.json()["code"]) == (400, "MALFORMED")
    assert federation.upstream.seen == []


def test_a_deep_tree_does_not_exhaust_the_stack(federation: Federation) -> None:
    from tests.common.flower_compat.fleet_bytes import nested_reply

    with node(federation.coordinator, federation.north) as site:
        answer = site.post("push-messages", nested_reply(depth=5000))
    assert (answer.status_code, answer.json()["code"]) == (400, "MALFORMED")


def test_junk_is_no_http(federation: Federation) -> None:
    assert raw(federation, b"\x16\x03\x01junk\r\n\r\n", federation.north).startswith(b"HTTP/1.1 400 ")
    assert raw(federation, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 40_000 + b"\r\n\r\n", federation.north).startswith(b"HTTP/1.1 400 ")


# ---- what is written down


def test_the_access_log_says_who_what_and_how_it_ended_and_holds_no_body(federation: Federation) -> None:
    secret = b"PATIENT-4711"
    with node(federation.coordinator, federation.north) as site:
        site.push_object(11, "a" * 64, secret, session="session-of-nobody")
        site.post("push-messages", secret)
    token = "ab" * 32
    post(federation, "/v1/wardround/enrol", None, json.dumps({"token": token, "site": "PATIENT"}).encode())
    with client(federation.coordinator, federation.north) as http:
        http.get("/v1/wardround/studies?token=PATIENT")
    pushed = federation.logged(path="/v1/fleet/push-object", status=403)
    assert (pushed["site"], pushed["code"]) == ("north", "NOT_YOUR_SESSION")
    assert pushed["bytes_in"] > len(secret) and pushed["certificate"] == federation.north.fingerprint[:16]
    federation.logged(path="/v1/wardround/studies", code="BAD_QUERY")
    for log in federation.coordinator.home.logs.iterdir():
        assert "PATIENT" not in log.read_text() and token not in log.read_text()
        assert log.stat().st_mode & 0o077 == 0
