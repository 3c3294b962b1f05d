# SPDX-License-Identifier: Apache-2.0
"""A real SuperLink behind a real gateway: a message goes to a site and its reply comes back; nobody else's way in is open."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from common.flower_compat import control, superlink
from common.flower_compat.fleet import FleetConnection, Unreachable
from common.flower_compat.fleet_messages import answer_to
from server.authority import register_node, registry
from server.executor import sync_nodes
from server.home import ServerHome
from tests.common.flower_compat.attacker import PullMessagesResponse, PullObjectResponse, acquire_task, parsed
from tests.common.flower_compat.fleet_bytes import reply_to
from tests.common.flower_compat.server_side import ServerEnd, begun_run, bundle
from tests.server.gateway.coordinator import Coordinator, Hospital, client, gateway, node, tls


@dataclass
class Real:
    """Coordinator, SuperLink and gateway, and a run that north has approved and south has not."""

    coordinator: Coordinator
    north: Hospital
    south: Hospital
    run: ServerEnd


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    folder = tmp_path_factory.mktemp("real")
    coordinator = Coordinator.make(folder)
    home = coordinator.home
    with (folder / "superlink.log").open("wb") as log:
        environment = superlink_environment(folder)
        command = [sys.executable, "-m", "common.flower_compat.superlink", *superlink.arguments(home)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=folder)
    try:
        with gateway(coordinator):
            wait_for_superlink(coordinator, process)
            north, south = (registered(coordinator, name, folder) for name in ("north", "south"))
            with begun_run(home, bundle(), {"study": "{}"}) as run:
                coordinator.start(run.flower_run_id, ("north", "south"), (north,))
                yield Real(coordinator, north, south, run)
    finally:
        process.terminate()
        process.wait(20)


def registered(coordinator: Coordinator, name: str, folder: Path) -> Hospital:
    """An enrolled hospital whose node key Flower knows."""
    hospital = coordinator.hospital(name, folder)
    node_id = register_node(coordinator.home, registry(coordinator.home).by_name(name))
    assert node_id is not None
    return Hospital(hospital.name, hospital.keys, hospital.certificate, hospital.tls_key, node_id)


def superlink_environment(folder: Path) -> dict[str, str]:
    import os

    import server

    place = str(Path(server.__file__).resolve().parents[1])
    quiet = {"FLWR_HOME": str(folder / "flwr"), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
    return os.environ | quiet | {"PYTHONPATH": place}


def wait_for_superlink(coordinator: Coordinator, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            control.nodes(coordinator.home)
        except control.NotRunning:
            time.sleep(0.1)
        else:
            return
    raise AssertionError("the SuperLink did not come up")


def instruction(value: float) -> RecordDict:
    """A message as a round sends it: facts and a tensor of 12 MB, which Flower cuts into three pieces."""
    weights = ArrayRecord({"weight": Array(np.full(3_000_000, value, np.float32))})
    return RecordDict({"facts": ConfigRecord({"round": 1}), "model": weights})


@pytest.mark.parametrize("noted", [None, 12345], ids=["new", "lost by Flower"])
def test_a_site_that_comes_while_it_is_registered_waits(
    real: Real, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted: int | None
) -> None:
    """Between Flower's list and ours it is told to try again; not that it is unwelcome, which it would believe for half a minute."""
    name, told, register = f"east{noted or 0}", [], control.register_node
    hospital = real.coordinator.hospital(name, tmp_path, noted)
    link = FleetConnection(real.coordinator.url, tls(real.coordinator, hospital), hospital.keys.node_key)

    def and_it_comes(home: ServerHome, key: str, site: str) -> int:
        number = register(home, key, site)
        with pytest.raises(Unreachable, match="still being registered"):
            link.activate()
        told.append(site)
        return number

    monkeypatch.setattr(control, "register_node", and_it_comes)
    sync_nodes(real.coordinator.home)
    assert told == [name]
    assert link.activate() == registry(real.coordinator.home).by_name(name).node_id != noted
    assert link.pull() is None
    link.deactivate()
    link.close()


def test_a_message_goes_out_and_its_reply_comes_back(real: Real) -> None:
    link = FleetConnection(real.coordinator.url, tls(real.coordinator, real.north), real.north.keys.node_key)
    assert link.activate() == real.north.node_id
    sent = real.run.send(instruction(1.5), real.north.node_id)
    pulled = link.pull()
    assert pulled is not None and pulled.message_id == sent
    assert link.run(pulled.flower_run_id).config["study"] == "{}"
    message = link.fetch(pulled, lambda: False)
    link.confirm(pulled)
    assert link.pull() is None
    assert float(message.content["model"]["weight"].numpy()[0]) == 1.5
    link.push(answer_to(pulled, instruction(2.5), 0.1))
    answer = real.run.reply(sent)
    assert float(answer.content["model"]["weight"].numpy().sum()) == 2.5 * 3_000_000
    link.deactivate()
    link.close()


def test_what_is_behind_the_gateway_is_not_reached_through_it(real: Real) -> None:
    before = {one.name for one in control.nodes(real.coordinator.home)}
    with client(real.coordinator, real.north) as http:
        assert acquire_task(http).status_code == 403
        for call in ("start-run", "stop-run", "register-node", "unregister-node", "list-nodes"):
            assert http.post(f"/v1/control/{call}", headers={"content-type": "application/protobuf"}).status_code == 403
        for path in ("/docs", "/openapi.json"):
            assert http.get(path).status_code == 404
    assert {one.name for one in control.nodes(real.coordinator.home)} == before


def test_self_registration_is_not_open(real: Real) -> None:
    with node(real.coordinator, real.north) as site:
        assert [site.register().status_code, site.unregister().status_code, site.get_fab(real.run.flower_run_id, "x").status_code] == [
            403
        ] * 3


def test_another_sites_object_by_its_true_id(real: Real) -> None:
    """Flower itself would give it: the same call made to the SuperLink on loopback has it."""
    with node(real.coordinator, real.north) as north, node(real.coordinator, real.south) as south:
        assert north.activate().status_code == south.activate().status_code == 200
        real.run.send(instruction(3.5), real.north.node_id)
        announced = parsed(PullMessagesResponse, north.pull_messages())
        true_id = announced.messages_list[0].metadata.message_id
        run_id = real.run.flower_run_id
        assert parsed(PullObjectResponse, north.pull_object(run_id, true_id)).object_found
        refused = south.pull_object(run_id, true_id)
        assert (refused.status_code, refused.json()["code"]) == (403, "RUN_NOT_APPROVED")
        with client(real.coordinator) as direct:
            direct.base_url = httpx.URL(f"https://127.0.0.1:{real.coordinator.home.settings.superlink_port}")
            south._http, kept = direct, south._http
            assert parsed(PullObjectResponse, south.pull_object(run_id, true_id)).object_found, "Flower alone does not ask whose it is"
            south._http = kept
        assert north.confirm(run_id, true_id).status_code == 200
        assert north.deactivate().status_code == south.deactivate().status_code == 200


def test_a_message_of_a_run_that_the_site_did_not_approve_stays_inside(real: Real) -> None:
    with node(real.coordinator, real.south) as south:
        assert south.activate().status_code == 200
        sent = real.run.send(instruction(4.5), real.south.node_id)
        assert south.pull_messages().content == b""
        assert south.pull_object(real.run.flower_run_id, sent).status_code == 403
        forged = reply_to(sent, real.south.node_id, real.run.flower_run_id)
        assert south.post("push-messages", forged).status_code == 403
        assert south.deactivate().status_code == 200
    assert "WITHHELD" in (real.coordinator.home.logs / "access.log").read_text()


def test_an_object_without_a_session_is_not_put_into_somebody_elses(real: Real) -> None:
    with node(real.coordinator, real.north) as north:
        answer = north.push_object(real.run.flower_run_id, "a" * 64, b"x", "")
        assert (answer.status_code, answer.json()["code"]) == (403, "NOT_YOUR_SESSION")
