# SPDX-License-Identifier: Apache-2.0
"""The node loop of a hospital against a real SuperLink: what it answers, what it never asks for, and how it comes back."""

import dataclasses
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from client.approvals import Approvals
from client.approving import reject
from client.node import BUSY_SECONDS, IDLE_SECONDS, Pace
from client.site import open_ledger
from client.site_home import SiteHome
from client.status import Stage
from common.federation import NO_RUN, EgressStatement
from common.flower_compat import control
from common.flower_compat.fleet import Pulled
from common.flower_compat.fleet_messages import Metadata
from common.privacy.charge_book import State
from common.protocol import Instruction
from common.riders import egress_of, payload_sha256
from common.signed import Signed
from common.study import Study
from tests.client.node_site import (
    COORDINATOR,
    FAST,
    SITE_APP,
    NodeSite,
    approved_site,
    code,
    enrolled_site,
    offered_study,
    signed_start,
    wait_until,
    write_data,
)
from tests.common.flower_compat.loopback_link import LoopbackLink, running_link

SOON = 8.0


@pytest.fixture(scope="session")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackLink]:
    with running_link(tmp_path_factory.mktemp("node-link")) as started:
        yield started


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("node-data") / "chest.npz"
    write_data(path, offered_study())
    return path


@pytest.fixture(scope="session")
def approved(tmp_path_factory: pytest.TempPathFactory, link: LoopbackLink, data: Path) -> NodeSite:
    return approved_site(tmp_path_factory.mktemp("approved"), link, data)


@pytest.fixture
def site(tmp_path: Path, approved: NodeSite) -> Iterator[NodeSite]:
    """The site right after the approval."""
    shutil.copytree(approved.home.folder, tmp_path / "north")
    site = NodeSite(SiteHome(tmp_path / "north"), approved.link, approved.study, approved.start)
    yield site
    site.close()


def events(site: NodeSite) -> list[str]:
    lines = (site.home.logs / "daemon.log").read_text().splitlines()
    return [str(json.loads(line)["event"]) for line in lines]


def test_rounds_with_the_real_app(site: NodeSite) -> None:
    """Trained, charged, through the door, sent, and said so in the ledger."""
    with site.running(SITE_APP), site.link.run(site.config) as server:
        asked = site.instruction()
        reply = server.ask(asked, site.node_id, seconds=120)
        assert code(reply) == "update"
        assert code(server.ask(site.instruction(1, train=False), site.node_id, "evaluate", seconds=60)) == "evaluated"
    text = egress_of(reply.content)
    assert text is not None
    public = open_ledger(site.folder)._secret.signer.public_key
    statement = EgressStatement.verified(Signed.from_json(text), public)
    assert statement.payload_sha256 == payload_sha256(reply.content)
    assert statement.incoming_sha256 == Instruction.from_records(asked).sha256
    assert (statement.study_id, statement.run_id, statement.round) == (site.study.id, site.run_id, 1)
    charges = [charge for charge in open_ledger(site.folder).charges() if charge.key.run_id == site.run_id]
    assert [charge.state for charge in charges] == [State.SENT]
    assert len(site.home.egress.read_text().splitlines()) == 2
    assert site.state.in_hand is None and site.state.rounds_answered == 2


def test_messages_one_after_the_other(site: NodeSite) -> None:
    with site.running(), site.link.run(site.config) as server:
        for number in (1, 2, 3):
            assert code(server.ask(site.instruction(number), site.node_id)) == "update"
        assert len(site.connections) == 1 and events(site).count("online") == 1
    assert not site.link.is_online(site.node_id)


@pytest.mark.parametrize("kind", ["query", "train.other"])
def test_a_message_of_another_type(site: NodeSite, kind: str) -> None:
    with site.running(), site.link.run(site.config) as server:
        assert code(server.ask(site.instruction(), site.node_id, kind)) == "PROTOCOL_MISMATCH"
    assert site.fetched == []


def test_a_type_that_does_not_fit_what_is_asked(site: NodeSite) -> None:
    with site.running(), site.link.run(site.config) as server:
        assert code(server.ask(site.instruction(train=False), site.node_id, "train")) == "PROTOCOL_MISMATCH"
        assert code(server.ask(site.instruction(train=True), site.node_id, "evaluate")) == "PROTOCOL_MISMATCH"
    assert site.worker.process_id is None and not (site.folder / "begun").exists()


def test_a_run_without_our_record(site: NodeSite) -> None:
    """A plain `flwr run`: nothing of its message is asked for."""
    with site.running(), site.link.run({}) as server:
        assert code(server.ask(site.instruction(), site.node_id)) == "STUDY_NOT_APPROVED"
    assert site.fetched == [] and site.worker.process_id is None


def other_study() -> Study:
    return offered_study().with_changes({"training.local_steps": 3})


def wrong_configs(site: NodeSite) -> dict[str, dict[str, str]]:
    return {
        "not JSON": {**site.config, "signature": "yes"},
        "another key": {**site.config, "signature": signed_start(site.study, COORDINATOR).to_json()},
        "a changed study": {**site.config, "study": other_study().canonical_json},
        "not approved": {"study": other_study().canonical_json, "signature": signed_start(other_study()).to_json()},
        "for others": {**site.config, "signature": signed_start(site.study, sites=("south",)).to_json()},
        "expired": {**site.config, "signature": signed_start(site.study, created=1.0, expires=2.0).to_json()},
    }


def test_runs_that_were_not_approved(site: NodeSite) -> None:
    with site.running():
        site.wait_online()
        for name, config in wrong_configs(site).items():
            with site.link.run(config) as server:
                assert code(server.ask(site.instruction(), site.node_id)) == "STUDY_NOT_APPROVED", name
    assert site.fetched == [] and site.worker.process_id is None


def test_a_second_run_on_one_approval(site: NodeSite) -> None:
    with site.running():
        with site.link.run(site.config) as server:
            assert code(server.ask(site.instruction(), site.node_id)) == "update"
        with site.link.run({**site.config, "signature": signed_start(site.study).to_json()}) as server:
            assert code(server.ask(site.instruction(), site.node_id)) == "STUDY_NOT_APPROVED"


def test_a_message_about_another_run_or_study_inside_an_approved_one(site: NodeSite) -> None:
    with site.running(), site.link.run(site.config) as server:
        assert code(server.ask(site.instruction(run_id="ab" * 16), site.node_id)) == "STUDY_NOT_APPROVED"
        assert code(server.ask(site.instruction(study=other_study().canonical_json), site.node_id)) == "STUDY_NOT_APPROVED"
    assert not (site.folder / "begun").exists()


def test_a_study_that_is_rejected_in_the_middle_of_its_run(site: NodeSite) -> None:
    with site.running(), site.link.run(site.config) as server:
        assert code(server.ask(site.instruction(1), site.node_id)) == "update"
        reject(site.home, site.study.id, "the test", time.time())
        assert code(server.ask(site.instruction(2), site.node_id)) == "STUDY_NOT_APPROVED"


def test_a_message_that_cannot_be_read(site: NodeSite) -> None:
    records = site.instruction()
    records["wardround"]["protocol"] = 99
    with site.running(), site.link.run(site.config) as server:
        assert code(server.ask(records, site.node_id)) == "PROTOCOL_MISMATCH"


def test_paused(site: NodeSite) -> None:
    with site.running(), site.link.run(site.config) as server:
        site.home.paused.touch()
        reply = server.ask(site.instruction(), site.node_id)
        assert code(reply) == "PAUSED"
        assert site.fetched == [] and site.link.is_online(site.node_id)
        said = Signed.from_json(egress_of(reply.content) or "").record
        assert EgressStatement.model_validate_json(said).run_id == NO_RUN, "by this the coordinator knows that the run is not used"
        assert Approvals(site.home).runs(site.study.id) == ()
        site.home.paused.unlink()
        assert code(server.ask(site.instruction(), site.node_id)) == "update"


def test_a_policy_that_cannot_be_read(site: NodeSite) -> None:
    with site.running(), site.link.run(site.config) as server:
        text = site.home.config.read_text()
        site.home.config.write_text("name: [")
        assert code(server.ask(site.instruction(), site.node_id)) == "NOT_READY"
        site.home.config.write_text(text)
        assert code(server.ask(site.instruction(), site.node_id)) == "update"


def test_a_worker_that_is_killed_in_training(site: NodeSite) -> None:
    site.behave("sleep 60")
    with site.running(), site.link.run(site.config) as server:
        sent = server.send(site.instruction(1), site.node_id)
        os.kill(site.begun(), signal.SIGKILL)
        killed = time.monotonic()
        assert code(server.reply(sent)) == "TRAINING_FAILED"
        assert time.monotonic() - killed < SOON
        site.behave("")
        assert code(server.ask(site.instruction(2), site.node_id)) == "update"
    assert "the training process ended" in site.home.log.read_text()


def test_a_worker_that_is_killed_while_it_is_idle_costs_nothing(site: NodeSite) -> None:
    with site.running(), site.link.run(site.config) as server:
        assert code(server.ask(site.instruction(1), site.node_id)) == "update"
        os.kill(site.begun(), signal.SIGKILL)
        time.sleep(0.2)
        assert code(server.ask(site.instruction(2), site.node_id)) == "update"


def test_an_app_that_raises_says_nothing_outside(site: NodeSite) -> None:
    site.behave("raise")
    with site.running(), site.link.run(site.config) as server:
        reply = server.ask(site.instruction(), site.node_id)
        assert code(reply) == "TRAINING_FAILED" and "patient" not in str(reply)


def test_what_was_answered_just_before_the_end_is_not_lost(site: NodeSite) -> None:
    """The link hands out no reply of a node that has gone."""
    with site.link.run(site.config) as server, site.running(timing=dataclasses.replace(FAST, after_reply=3.0)) as node:
        sent = server.send(site.instruction(), site.node_id)
        wait_until(lambda: site.state.rounds_answered == 1)
        node.stop()
        assert code(server.reply(sent)) == "update"


def test_stopped_in_training(site: NodeSite) -> None:
    site.behave("sleep 60")
    with site.link.run(site.config) as server:
        with site.running() as node:
            sent = server.send(site.instruction(), site.node_id)
            site.begun()
            stopped = time.monotonic()
            node.stop()
            assert code(server.reply(sent)) == "INTERRUPTED"
            assert time.monotonic() - stopped < SOON
        assert not site.link.is_online(site.node_id)


def test_a_message_that_has_expired_is_not_worked_on(site: NodeSite) -> None:
    node = site.build()
    header = Metadata(message_type="train", run_id=1, created_at=time.time() - 100, ttl=99)
    node._serve(Pulled(header.SerializeToString(), ()))
    header.ttl = float("nan")
    node._serve(Pulled(header.SerializeToString(), ()))
    assert events(site) == ["message dropped", "message dropped"]
    assert site.state.in_hand is None and site.connections == []


def test_what_was_in_hand_when_the_daemon_died_is_answered_at_the_next_start(site: NodeSite) -> None:
    with site.link.run(site.config) as server:
        connection = site.connect()
        connection.activate()
        sent = server.send(site.instruction(), site.node_id)
        pulled = connection.pull()
        assert pulled is not None
        site.build()._board.take(pulled.header)
        site.node._board.online(site.node_id)
        connection.close()  # the daemon is dead; its node is still online there
        with site.running():
            assert code(server.reply(sent, SOON)) == "INTERRUPTED"
            wait_until(lambda: site.state.in_hand is None)
            assert code(server.ask(site.instruction(), site.node_id)) == "update", "the same round asked again"


def test_a_renewal_between_two_messages(site: NodeSite) -> None:
    with site.running() as node, site.link.run(site.config) as server:
        assert code(server.ask(site.instruction(1), site.node_id)) == "update"
        online = site.state.node_id
        node.renew()
        wait_until(lambda: len(site.connections) == 2)
        assert site.link.is_online(site.node_id)
        assert code(server.ask(site.instruction(2), site.node_id)) == "update"
        assert site.state.node_id == online and "certificate renewed" in events(site)


def test_a_heartbeat_that_died(site: NodeSite) -> None:
    with site.running():
        site.wait_online()
        heartbeat = site.connections[0]._heartbeat
        assert heartbeat is not None
        heartbeat.stop()
        wait_until(lambda: "heartbeat started again" in events(site))


def test_a_node_that_is_not_accepted_any_more_keeps_trying(tmp_path: Path, link: LoopbackLink, data: Path, approved: NodeSite) -> None:
    site = NodeSite(enrolled_site(tmp_path, link, data), link, approved.study, approved.start)
    assert site.node_id != approved.node_id
    with site.running():
        site.wait_online()
        control.unregister_node(site.link, site.node_id)
        wait_until(lambda: site.state.stage is Stage.NOT_WELCOME)
        tries = len(site.connections)
        wait_until(lambda: len(site.connections) > tries)
        assert "401" in str(site.state.last_error) or "not registered" in str(site.state.last_error)
    site.close()


def test_keys_that_cannot_be_read_are_said_and_tried_again(site: NodeSite) -> None:
    site.home.node_key.chmod(0o644)
    with site.running():
        wait_until(lambda: site.state.stage is Stage.BLOCKED)
        assert "node.pem" in str(site.state.last_error)
        site.home.node_key.chmod(0o600)
        site.wait_online()


def test_nothing_leaves_while_its_line_cannot_be_written(site: NodeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.node.STORAGE_RETRY_SECONDS", 0.1)
    site.home.egress.mkdir()
    with site.running(), site.link.run(site.config) as server:
        sent = server.send(site.instruction(), site.node_id)
        wait_until(lambda: "nothing may leave" in events(site))
        assert list(server.grid.pull_messages([sent])) == []
        site.home.egress.rmdir()
        assert code(server.reply(sent)) in ("update", "TRAINING_FAILED", "NOT_READY")


@pytest.mark.slow
def test_a_server_that_is_away_at_the_start_and_killed_in_training(tmp_path: Path, data: Path) -> None:
    with running_link(tmp_path / "link") as own:
        site = approved_site(tmp_path, own, data)
        number = site.node_id
        own.kill()
        with site.running():
            wait_until(lambda: site.state.stage is Stage.UNREACHABLE)
            own.start()
            site.wait_online()
            site.behave("sleep 3")
            with own.run(site.config) as server:
                sent = server.send(site.instruction(), number)
                site.begun()
                own.kill()
                time.sleep(3.5)
                own.start()
                assert code(server.reply(sent)) == "update"
        site.close()


def test_the_pace() -> None:
    now = [0.0]
    pace = Pace(lambda: now[0])
    waits = [pace.next_wait() for _ in range(12)]
    assert waits[0] == 0.05 and waits == sorted(waits) and waits[-1] == 0.2
    now[0] = BUSY_SECONDS
    waits = [pace.next_wait() for _ in range(12)]
    assert waits == sorted(waits) and waits[-1] == 1.0
    now[0] = IDLE_SECONDS
    assert pace.is_idle and pace.next_wait() == 2.0
    pace.worked()
    assert not pace.is_idle and pace.next_wait() == 0.05


def test_a_node_that_idles_long_frees_the_training_process(site: NodeSite) -> None:
    with site.running() as node, site.link.run(site.config) as server:
        assert code(server.ask(site.instruction(), site.node_id)) == "update"
        assert site.worker.process_id is not None
        node._pace._worked_at -= IDLE_SECONDS
        wait_until(lambda: site.worker.process_id is None)


def test_nothing_in_the_log_says_what_only_the_site_knows(site: NodeSite, data: Path) -> None:
    site.behave("raise")
    with site.running(), site.link.run(site.config) as server:
        server.ask(site.instruction(), site.node_id)
    log = (site.home.logs / "daemon.log").read_text() + site.home.daemon.read_text()
    assert str(data) not in log and "patient" not in log and str(site.home.folder) not in log
