# SPDX-License-Identifier: Apache-2.0
"""Calls over real TLS: what is trusted, what is shown, what is said when something is wrong."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.coordinator import MAX_ANSWER_BYTES, Coordinator, tls_context
from client.site_home import SiteHome
from common.crypto.certificates import DAY_SECONDS, Authority, to_der
from common.crypto.site_keys import SiteKeys
from common.errors import CoordinatorRefused, CoordinatorUnreachable, ExitCode, InputError, ProtocolError, StorageError
from common.signed import Signed
from tests.client.enrolled import NOW, certified, new_authority, prepared
from tests.support.tls_server import Answer, Answerer, TlsServer, connect_proxy, serving, write_server_certificate


@pytest.fixture(scope="module")
def authority() -> Authority:
    return new_authority()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def answering(answer: Answer) -> Answerer:
    return lambda method, path, body, certificate: answer


@pytest.fixture
def ready(tmp_path: Path, authority: Authority) -> Iterator[tuple[TlsServer, SiteHome]]:
    """A server that tells the time, and a site that has its certificate."""
    write_server_certificate(tmp_path / "server", authority)
    with serving(tmp_path / "server", answering((200, {"time": 12.5}))) as server:
        yield server, certified(prepared(tmp_path, authority, server.url), authority)


def message_of(home: SiteHome) -> str:
    with Coordinator(home) as coordinator, pytest.raises(CoordinatorUnreachable) as error:
        coordinator.time()
    assert error.value.exit_code is ExitCode.FEDERATION
    return str(error.value)


def refusal(tmp_path: Path, authority: Authority, answer: Answer) -> CoordinatorRefused:
    write_server_certificate(tmp_path / "server", authority)
    with serving(tmp_path / "server", answering(answer)) as server, Coordinator(prepared(tmp_path, authority, server.url)) as coordinator:
        with pytest.raises(CoordinatorRefused) as error:
            coordinator.time()
        return error.value


def test_each_call_is_one_request_with_the_site_s_certificate(tmp_path: Path, authority: Authority) -> None:
    answers = {
        "/v1/wardround/enrol": {"status": "waiting"},
        "/v1/wardround/renew": {"status": "approved", "certificate": "PEM"},
        "/v1/wardround/studies": {"studies": [{"study": "{}", "start": "{}"}]},
        "/v1/wardround/approvals": {},
        "/v1/wardround/receipts?after=7": {"receipts": [{"id": 8}]},
        "/v1/wardround/time": {"time": 12.5},
    }
    write_server_certificate(tmp_path / "server", authority)
    with serving(tmp_path / "server", lambda method, path, body, certificate: (200, answers[path])) as server:
        home = certified(prepared(tmp_path, authority, server.url), authority)
        signed = Signed(record="{}", signature="0" * 128)
        request = SiteKeys.read(home.folder).request(home.read_invitation())
        with Coordinator(home) as coordinator:
            assert coordinator.enrol(request).status == "waiting"
            assert coordinator.renew("CSR").certificate == "PEM"
            assert coordinator.studies() == [{"study": "{}", "start": "{}"}]
            coordinator.approve(signed)
            assert coordinator.receipts(7) == [{"id": 8}]
            assert coordinator.time() == 12.5
    own = to_der(home.certificate.read_text())
    assert [(one.method, one.path.split("/")[-1], one.certificate == own) for one in server.asked] == [
        ("POST", "enrol", False),  # without a certificate: it is asked for when the old one has expired
        ("POST", "renew", True),
        ("GET", "studies", True),
        ("POST", "approvals", True),
        ("GET", "receipts?after=7", True),
        ("GET", "time", True),
    ]
    assert server.asked[0].certificate is None
    assert json.loads(server.asked[0].body) == request.model_dump()
    assert json.loads(server.asked[1].body) == {"certificate_request": "CSR"}
    assert Signed.from_json(server.asked[3].body) == signed


def test_a_server_of_another_authority_is_refused(tmp_path: Path, authority: Authority) -> None:
    write_server_certificate(tmp_path / "server", new_authority())
    with serving(tmp_path / "server", answering((200, {"time": 1}))) as server:
        text = message_of(prepared(tmp_path, authority, server.url))
    assert "not issued by the authority of the invitation" in text
    assert "do not go on" in text
    assert "ask for a new invitation" in text
    assert server.asked == []


def test_the_system_s_authorities_do_not_count(ready: tuple[TlsServer, SiteHome]) -> None:
    _, home = ready
    assert [dict(found["subject"][0])["commonName"] for found in tls_context(home).get_ca_certs()] == ["Wardround federation authority"]


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_a_server_for_another_host_is_refused(tmp_path: Path, authority: Authority, host: str) -> None:
    write_server_certificate(tmp_path / "server", authority, ("coordinator.example", "127.0.0.2"))
    with serving(tmp_path / "server", answering((200, {"time": 1}))) as server:
        text = message_of(prepared(tmp_path, authority, server.url.replace("localhost", host)))
    assert "is for another host" in text
    assert "coordinator in site.yaml" in text
    assert server.asked == []


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (NOW - 3 * DAY_SECONDS, "the server's certificate has expired; tell the coordinator, and check this machine's clock"),
        (NOW + 3 * DAY_SECONDS, "is not valid yet; check this machine's clock"),
    ],
)
def test_a_server_outside_its_dates_is_refused(tmp_path: Path, authority: Authority, start: float, said: str) -> None:
    write_server_certificate(tmp_path / "server", authority, now=start)
    with serving(tmp_path / "server", answering((200, {"time": 1}))) as server:
        assert said in message_of(prepared(tmp_path, authority, server.url))


def test_the_site_s_own_expired_certificate_says_how_to_get_the_next(tmp_path: Path, authority: Authority) -> None:
    write_server_certificate(tmp_path / "server", authority)
    with serving(tmp_path / "server", answering((200, {"time": 1}))) as server:
        home = certified(prepared(tmp_path, authority, server.url), authority, days=1, now=NOW - 3 * DAY_SECONDS)
        text = message_of(home)
    assert "this site's certificate (tls.crt) has expired" in text
    assert "wardround-server sites renew" in text
    assert "wardround-client init" in text


def test_a_certificate_of_another_federation_says_so(tmp_path: Path, authority: Authority) -> None:
    write_server_certificate(tmp_path / "server", authority)
    with serving(tmp_path / "server", answering((200, {"time": 1}))) as server:
        text = message_of(certified(prepared(tmp_path, authority, server.url), new_authority()))
    assert "does not accept this site's certificate (tls.crt): another authority issued it" in text


def test_a_certificate_that_does_not_go_with_the_key_is_told_before_anything_is_sent(tmp_path: Path, authority: Authority) -> None:
    home, other = (prepared(tmp_path, authority, "https://localhost:1", name) for name in ("north", "south"))
    home.certificate.write_bytes(certified(other, authority, "south").certificate.read_bytes())
    with Coordinator(home) as coordinator, pytest.raises(StorageError, match=r"tls\.crt: does not go with tls\.pem"):
        coordinator.time()
    home.ca_certificate.write_text("nothing")
    with pytest.raises(InputError, match=r"ca\.crt: cannot be used as the coordinator's authority"):
        tls_context(home)


def test_a_port_where_nobody_listens(tmp_path: Path, authority: Authority) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    text = message_of(prepared(tmp_path, authority, f"https://localhost:{port}"))
    assert "cannot be reached (Connection refused)" in text
    assert "firewall (outbound)" in text


def test_a_name_that_nobody_knows(tmp_path: Path, authority: Authority) -> None:
    text = message_of(prepared(tmp_path, authority, "https://coordinator.invalid:8443"))
    assert "its name cannot be resolved" in text
    assert "HTTPS_PROXY" in text


def test_a_port_without_tls(tmp_path: Path, authority: Authority) -> None:
    with connect_proxy() as targets:  # any plain HTTP server
        assert "TLS failed" in message_of(
            prepared(tmp_path, authority, targets[0].replace("http:", "https:").replace("127.0.0.1", "localhost"))
        )


def test_the_proxy_of_the_environment_is_used_and_cannot_read_along(
    ready: tuple[TlsServer, SiteHome], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, home = ready
    with connect_proxy() as targets:
        monkeypatch.setenv("HTTPS_PROXY", targets[0])
        with Coordinator(home) as coordinator:
            assert coordinator.time() == 12.5
        assert targets[1:] == [f"localhost:{server.port}"]
        monkeypatch.setenv("NO_PROXY", "localhost")
        with Coordinator(home) as coordinator:
            assert coordinator.time() == 12.5
        assert targets[1:] == [f"localhost:{server.port}"]


def test_a_proxy_that_says_no(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    write_server_certificate(tmp_path / "server", authority)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{port}")
    assert "cannot be reached" in message_of(prepared(tmp_path, authority, "https://localhost:1"))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "this site is not let in: the reason; `wardround-client check`"),
        (403, "the reason"),
        (409, "the reason"),
        (413, "the request was too large (the reason)"),
        (429, "too many requests (the reason); wait a minute"),
        (503, "the coordinator has a fault of its own (HTTP 503) (the reason)"),
    ],
)
def test_what_the_coordinator_refuses_is_told_with_status_and_code(tmp_path: Path, authority: Authority, status: int, said: str) -> None:
    error = refusal(tmp_path, authority, (status, {"code": "SOME_CODE", "message": "the reason"}))
    assert (error.status, error.code, error.exit_code) == (status, "SOME_CODE", ExitCode.REFUSED)
    assert said in str(error)
    assert "the reason" in str(error)


@pytest.mark.parametrize("body", [b"<html>blocked by the firewall</html>", b"[1]", b"null", b'{"code": "X"}', b""])
def test_a_page_that_is_not_the_gateway_s_is_not_repeated(tmp_path: Path, authority: Authority, body: bytes) -> None:
    error = refusal(tmp_path, authority, (403, body))
    assert "answered 403 without a word of ours" in str(error)
    assert error.code == ""


def test_what_comes_from_outside_cannot_steer_a_terminal(tmp_path: Path, authority: Authority) -> None:
    error = refusal(tmp_path, authority, (403, {"code": "A\x1b[2J", "message": "\x1b]0;owned\x07 line\nnext" + "x" * 5000}))
    assert str(error).isprintable()
    assert error.code.isprintable()
    assert len(str(error)) < 700


def test_a_redirect_is_not_followed(tmp_path: Path, authority: Authority) -> None:
    assert refusal(tmp_path, authority, (302, {})).status == 302


@pytest.mark.parametrize("body", [b"no json", b"[]", b'{"time": "12"}', b'{"time": true}', b"{}", b'{"time": NaN}', b"[" * 100_000])
def test_an_answer_that_does_not_fit_is_a_protocol_error(tmp_path: Path, authority: Authority, body: bytes) -> None:
    write_server_certificate(tmp_path / "server", authority)
    with (
        serving(tmp_path / "server", answering((200, body))) as server,
        Coordinator(prepared(tmp_path, authority, server.url)) as coordinator,
        pytest.raises(ProtocolError, match=r"https://localhost"),
    ):
        coordinator.time()


def test_lists_and_enrolments_are_looked_at_too(tmp_path: Path, authority: Authority) -> None:
    write_server_certificate(tmp_path / "server", authority)
    bad = {"studies": [1], "receipts": {}, "status": "perhaps"}
    with serving(tmp_path / "server", answering((200, bad))) as server:
        home = prepared(tmp_path, authority, server.url)
        with Coordinator(home) as coordinator:
            for call in (coordinator.studies, lambda: coordinator.receipts(0), lambda: coordinator.renew("CSR")):
                with pytest.raises(ProtocolError, match="the two ends may differ in version"):
                    call()


def test_an_endless_answer_is_not_read_to_its_end(tmp_path: Path, authority: Authority) -> None:
    write_server_certificate(tmp_path / "server", authority)
    with (
        serving(tmp_path / "server", answering((200, b" " * (MAX_ANSWER_BYTES + 1)))) as server,
        Coordinator(prepared(tmp_path, authority, server.url)) as coordinator,
        pytest.raises(ProtocolError, match="it was not read"),
    ):
        coordinator.time()


def test_a_coordinator_may_be_closed_and_used_again(ready: tuple[TlsServer, SiteHome]) -> None:
    _, home = ready
    coordinator = Coordinator(home)
    for _ in range(2):
        assert coordinator.time() == 12.5
        coordinator.close()
