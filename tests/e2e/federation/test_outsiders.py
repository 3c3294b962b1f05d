# SPDX-License-Identifier: Apache-2.0
"""People without a place in the federation, and hospitals that reach for more than their own: real processes, TLS, Flower's own tools."""

import json
import shutil
import time
from pathlib import Path

import httpx
import psutil
import pytest

from simulations.loopback import Hospital
from simulations.processes import run
from tests.common.flower_compat.attacker import FleetAttacker, acquire_task, new_node_key
from tests.support.certificates import issue, new_authority, real_authority
from tests.support.federation import GUEST, HONEST, Federation

OWN_CALLS = ("studies", "receipts?after=0", "time")
CLOSED = (
    "/v1/control/start-run",
    "/v1/control/stop-run",
    "/v1/control/register-node",
    "/v1/runtime/acquire-task",
    "/docs",
    "/openapi.json",
    "/",
)


def code(response: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal, which has to be one sentence of JSON."""
    answer = response.json()
    assert set(answer) == {"code", "message"} and answer["message"]
    return response.status_code, str(answer["code"])


def fleet_calls(attacker: FleetAttacker) -> list[httpx.Response]:
    """Every Fleet call that the gateway knows."""
    return [
        attacker.activate(),
        attacker.heartbeat(),
        attacker.pull_messages(),
        attacker.push_messages(),
        attacker.get_run(1),
        attacker.pull_object(1, "0" * 64),
        attacker.push_object(1, "0" * 64, b""),
        attacker.confirm(1, "0" * 64),
        attacker.deactivate(),
    ]


def test_no_certificate_no_answer(federation: Federation) -> None:
    with federation.client() as http:
        assert {code(http.get(f"/v1/wardround/{call}")) for call in OWN_CALLS} == {(401, "NO_CERTIFICATE")}
        answers = fleet_calls(FleetAttacker(http, federation.node_key(HONEST[0]), federation.node_id(HONEST[0])))
    assert {code(answer) for answer in answers} <= {(401, "NO_CERTIFICATE"), (429, "TOO_MANY_REQUESTS")}


def test_another_authority_is_not_believed(federation: Federation, tmp_path: Path) -> None:
    card = issue(new_authority(), HONEST[0], tmp_path)
    with federation.client(card) as http, pytest.raises(httpx.TransportError):
        http.get("/v1/wardround/time")


def test_a_certificate_that_was_never_registered_opens_nothing(federation: Federation, tmp_path: Path) -> None:
    card = issue(real_authority(federation), HONEST[0], tmp_path)
    with federation.client(card) as http:
        assert code(http.get("/v1/wardround/time")) == (401, "CERTIFICATE_REFUSED")


def test_an_expired_certificate_is_refused(federation: Federation, tmp_path: Path) -> None:
    card = issue(real_authority(federation), GUEST, tmp_path, days=1, now=time.time() - 3 * 86400)
    with federation.client(card) as http, pytest.raises(httpx.TransportError):
        http.get("/v1/wardround/time")


def test_a_server_of_another_authority_is_refused_by_the_site(federation: Federation, tmp_path: Path) -> None:
    home = tmp_path / "site"
    shutil.copytree(federation.hospitals[GUEST].home, home)
    (home / "ca.crt").write_text(new_authority().pem, encoding="ascii")
    checked = federation.at(Hospital(GUEST, home, home, 1), "check", "--json", expect=None)
    assert checked.code != 0
    assert "TLS" in checked.out


def test_one_certificate_with_the_node_key_of_another(federation: Federation) -> None:
    first, second = HONEST
    for card, node in ((first, second), (second, first)):
        with federation.attacker(card, node) as attacker:
            assert {code(answer) for answer in fleet_calls(attacker)} == {(403, "WRONG_NODE_KEY")}


def test_a_node_key_that_nobody_registered(federation: Federation) -> None:
    with federation.client(federation.card(GUEST)) as http:
        attacker = FleetAttacker(http, new_node_key(), federation.node_id(GUEST))
        assert code(attacker.activate()) == (403, "WRONG_NODE_KEY")


def test_the_own_key_with_the_node_number_of_another(federation: Federation) -> None:
    with federation.client(federation.card(GUEST)) as http:
        attacker = FleetAttacker(http, federation.node_key(GUEST), federation.node_id(HONEST[0]))
        assert code(attacker.pull_messages()) == (403, "WRONG_NODE")


def test_nobody_registers_or_removes_a_node(federation: Federation) -> None:
    before = federation.superlink_rows("SELECT node_id FROM node")
    with federation.attacker(GUEST, GUEST) as attacker:
        answers = [attacker.register(), attacker.unregister(), attacker.get_fab(1, "0" * 64)]
    assert {answer.status_code for answer in answers} <= {403, 404}
    assert federation.superlink_rows("SELECT node_id FROM node") == before


def test_the_calls_of_others_are_closed_even_with_a_certificate(federation: Federation) -> None:
    with federation.client(federation.card(GUEST)) as http:
        assert {http.post(path, content=b"").status_code for path in CLOSED} | {http.get(path).status_code for path in CLOSED} <= {
            403,
            404,
            405,
        }


def test_a_serverapp_task_is_not_given_away(federation: Federation) -> None:
    with federation.client(federation.card(GUEST)) as http:
        assert acquire_task(http).status_code in (403, 404)
    with httpx.Client(
        base_url=f"https://127.0.0.1:{federation.ports[1]}", verify=str(federation.coordinator / "ca.crt"), trust_env=False
    ) as http:
        assert acquire_task(http).status_code == 401


def test_only_the_gateway_listens_beyond_its_own_business(federation: Federation) -> None:
    assert federation.server is not None
    root = psutil.Process(federation.server.pid)
    listening = {
        (connection.laddr.ip, connection.laddr.port)
        for process in (root, *root.children(recursive=True))
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    metrics = json.loads((federation.coordinator / "server.json").read_text(encoding="utf-8"))["metrics_listen"]
    assert listening == {("127.0.0.1", port) for port in (*federation.ports, int(metrics.rpartition(":")[2]))}


def test_a_used_invitation_brings_nobody_else_in(federation: Federation, tmp_path: Path) -> None:
    used = federation.folder / "invitations" / f"{GUEST}.json"
    refused = run("wardround-client", "init", "--invitation", used, "--home", tmp_path / "thief", expect=None)
    assert refused.code != 0
    assert "invit" in refused.err
    assert len(federation.rows("SELECT name FROM site WHERE name = ?", GUEST)) == 1


def test_an_invitation_alone_grants_nothing(federation: Federation) -> None:
    invitation = json.loads(federation.invite("nobody").read_text(encoding="utf-8"))
    assert "PRIVATE" not in json.dumps(invitation)
    with federation.client() as http:
        answer = http.get("/v1/wardround/studies", headers={"authorization": f"Bearer {invitation['token']}"})
    assert code(answer) == (401, "NO_CERTIFICATE")


def test_refusals_are_in_the_access_log(federation: Federation) -> None:
    with federation.client() as http:
        http.get("/v1/wardround/studies")
    assert any(line.get("code") == "NO_CERTIFICATE" for line in federation.access_log())
