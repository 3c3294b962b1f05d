# SPDX-License-Identifier: Apache-2.0
"""A real SuperLink behind a real gateway, and answers that are lost between them and the site: the message comes with a later pull."""

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from flwr.app import ConfigRecord, RecordDict

from common.flower_compat import superlink
from common.flower_compat.deliveries import delivered_unanswered
from server.gateway.redelivery import MOST_TIMES
from tests.common.flower_compat.attacker import FleetAttacker, PullMessagesResponse, PullObjectResponse, parsed
from tests.common.flower_compat.fleet_bytes import reply_to
from tests.common.flower_compat.server_side import ServerEnd, begun_run, bundle
from tests.server.gateway.coordinator import Coordinator, Hospital, gateway, node
from tests.server.gateway.test_superlink import registered, superlink_environment, wait_for_superlink
from tests.support.forwarder import BLOCK_BYTES, Forwarder


class OneWay(Forwarder):
    """A line that can stop carrying answers while requests still arrive."""

    def __init__(self, target_port: int) -> None:
        self.swallowing = threading.Event()
        super().__init__(target_port)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            is_answer = source.getpeername()[1] == self._target[1]
            while content := source.recv(BLOCK_BYTES):
                if not (is_answer and self.swallowing.is_set()):
                    target.sendall(content)
        for one in (source, target):
            self._shut(one)


@dataclass
class Lossy:
    """Coordinator, SuperLink, and a gateway that can be killed, on a line that can be cut. Both sites approved the run."""

    coordinator: Coordinator
    line: OneWay
    hospitals: tuple[Hospital, Hospital]
    run: ServerEnd
    gateways: ExitStack
    process: subprocess.Popen[bytes]
    north: FleetAttacker
    south: FleetAttacker

    def send(self) -> str:
        """A message for north; its id."""
        records = RecordDict({"facts": ConfigRecord({"sent": time.time()})})
        return self.run.send(records, self.hospitals[0].node_id)

    def kill_gateway(self) -> None:
        """kill -9, and a new one."""
        self.process.kill()
        self.process.wait(10)
        self.process = self.gateways.enter_context(gateway(self.coordinator))

    def is_delivered(self, message_id: str) -> bool:
        """Whether the SuperLink counts it as delivered, and has no reply."""
        path = self.coordinator.home.superlink_database
        return message_id in [one for one, _, _ in delivered_unanswered(path, time.time())]

    @contextmanager
    def lost(self) -> Iterator[tuple[str, Future[httpx.Response]]]:
        """North pulls a message, the SuperLink answers, and the answer does not come through; it never will when the block ends."""
        message_id = self.send()
        self.south.pull_messages()  # the gateway has a connection on which the next request travels
        self.line.swallowing.set()
        with ThreadPoolExecutor(1) as pool:
            pull = pool.submit(self.north.pull_messages)
            end = time.monotonic() + 20
            while not self.is_delivered(message_id):
                assert time.monotonic() < end, "the SuperLink has not seen the pull"
                time.sleep(0.02)
            yield message_id, pull
            self.line.drop()
            self.line.swallowing.clear()
            self.line.heal()


def pulled(site: FleetAttacker) -> list[str]:
    """What a pull brings."""
    answer = site.pull_messages()
    assert answer.status_code == 200, answer.text
    return [one.metadata.message_id for one in parsed(PullMessagesResponse, answer).messages_list]


@pytest.fixture(scope="module")
def lossy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lossy]:
    folder = tmp_path_factory.mktemp("lossy")
    coordinator = Coordinator.make(folder)
    home = coordinator.home
    with ExitStack() as behind:
        behind.enter_context(superlink_process(coordinator, folder))
        hospitals = registered(coordinator, "north", folder), registered(coordinator, "south", folder)
        run = behind.enter_context(begun_run(home, bundle(), {"study": "{}"}))
        coordinator.start(run.flower_run_id, ("north", "south"), hospitals)
        direct = home.settings
        behind.callback(home.write_settings, direct)
        line = OneWay(direct.superlink_port)
        behind.callback(line.close)
        home.write_settings(direct.model_copy(update={"superlink_port": line.port}))
        gateways = behind.enter_context(ExitStack())
        process = gateways.enter_context(gateway(coordinator))
        north, south = (behind.enter_context(node(coordinator, hospital)) for hospital in hospitals)
        assert north.activate().status_code == south.activate().status_code == 200
        yield Lossy(coordinator, line, hospitals, run, gateways, process, north, south)


@contextmanager
def superlink_process(coordinator: Coordinator, folder: Path) -> Iterator[None]:
    command = [sys.executable, "-m", "common.flower_compat.superlink", *superlink.arguments(coordinator.home)]
    with (folder / "superlink.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=superlink_environment(folder), cwd=folder)
    try:
        wait_for_superlink(coordinator, process)
        yield
    finally:
        process.terminate()
        process.wait(20)


def finish(lossy: Lossy, message_id: str) -> None:
    """North has the message, confirms it and answers; then it is not given out again."""
    run_id = lossy.run.flower_run_id
    assert parsed(PullObjectResponse, lossy.north.pull_object(run_id, message_id)).object_found
    assert lossy.north.confirm(run_id, message_id).status_code == 200
    assert pulled(lossy.north) == [], "confirmed: the site works on it"
    assert lossy.north.post("push-messages", reply_to(message_id, lossy.north.node_id, run_id)).status_code == 200
    assert pulled(lossy.north) == pulled(lossy.south) == []


def test_a_gateway_killed_with_the_answer_in_its_hands(lossy: Lossy) -> None:
    with lossy.lost() as (sent, pull):
        lossy.kill_gateway()
        assert isinstance(pull.exception(10), httpx.TransportError)
    assert pulled(lossy.south) == [] and lossy.is_delivered(sent), "of no use to anybody else"
    assert lossy.south.pull_object(lossy.run.flower_run_id, sent).status_code == 403
    assert pulled(lossy.north) == [sent]
    finish(lossy, sent)


def test_a_line_cut_between_superlink_and_gateway(lossy: Lossy) -> None:
    with lossy.lost() as (sent, pull):
        pass
    assert pull.result(10).json()["code"] == "SUPERLINK_DOWN"
    assert pulled(lossy.south) == []
    assert pulled(lossy.north) == [sent]
    finish(lossy, sent)


def test_a_site_that_never_saw_the_answer(lossy: Lossy) -> None:
    """The gateway sent it, and noted it; the site's line was cut."""
    sent = lossy.send()
    assert pulled(lossy.north) == [sent]
    assert pulled(lossy.south) == []
    assert pulled(lossy.north) == [sent]
    finish(lossy, sent)
    assert '"again":1' in (lossy.coordinator.home.logs / "access.log").read_text().replace(" ", "")


@pytest.mark.slow
def test_a_gateway_killed_after_it_noted_the_message(lossy: Lossy) -> None:
    sent = lossy.send()
    assert pulled(lossy.north) == [sent]
    lossy.kill_gateway()
    assert pulled(lossy.north) == [sent]
    lossy.kill_gateway()
    finish(lossy, sent)


def test_what_a_site_drops_each_time_comes_three_times_more_and_then_the_next(lossy: Lossy) -> None:
    dropped = lossy.send()
    assert [pulled(lossy.north) for _ in range(MOST_TIMES + 3)] == [[dropped]] * (MOST_TIMES + 1) + [[]] * 2
    following = lossy.send()
    assert pulled(lossy.north) == [following]
    finish(lossy, following)
    assert lossy.is_delivered(dropped)


def test_a_refusal_before_anything_was_fetched_is_an_answer(lossy: Lossy) -> None:
    sent = lossy.send()
    assert pulled(lossy.north) == [sent]
    answer = lossy.north.post("push-messages", reply_to(sent, lossy.north.node_id, lossy.run.flower_run_id))
    assert answer.status_code == 200
    assert pulled(lossy.north) == []
    lossy.kill_gateway()
    assert sent not in pulled(lossy.north)
