# SPDX-License-Identifier: Apache-2.0
"""Runs that are interrupted go on without a human: real processes are killed, the sites answer through the real gateway."""

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from common.errors import ExitCode
from common.protocol import Refusal, RefusalCode
from server.children import members
from server.offers import offers
from server.run_processes import all_at_work
from server.run_story import MOST_TRIES
from simulations.processes import wait_until
from tests.server.gateway.coordinator import Coordinator
from tests.server.up import STUDY, Held, Scene, last_json, on_server, opened, trains, up

BOTH = ("north", "south")
FLOWERS_PATIENCE_SECONDS = 60.0

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("resuming")
    with opened(Coordinator.make(folder), folder) as made:
        yield made


def newest(scene: Scene) -> str:
    return offers(scene.coordinator.state)[-1].run_id


def resumptions(scene: Scene, run_id: str) -> list[str]:
    return [str(event.facts["reason"]) for event in scene.events(run_id, "run_resumed") if event.facts["automatic"]]


def test_a_killed_executor_leaves_the_serverapp_at_work(scene: Scene) -> None:
    held = Held(1)
    with scene.sites(north=held, south=held):
        started = scene.begin(STUDY.with_changes({"seed": 11}), BOTH)
        wait_until(lambda: len(held.came) == 2, "round 1", 240, started)
        before, at_work = scene.pid("executor"), scene.serverapp()
        os.kill(before, signal.SIGKILL)
        wait_until(lambda: scene.pid("executor") not in (0, before), "another executor", 60)
        time.sleep(5)
        assert scene.serverapp() == at_work, "the next executor finds it at work and lets it"
        held.go.set()
        assert started.finished(240) == 0, started.said
    assert resumptions(scene, newest(scene)) == []
    wait_until(lambda: not all_at_work(scene.coordinator.home), "the ServerApp has ended", 30)


def test_the_whole_coordinator_is_killed_and_comes_back(scene: Scene) -> None:
    held = Held(2)
    with scene.sites(north=held, south=held):
        started = scene.begin(STUDY.with_changes({"seed": 12}), BOTH)
        wait_until(lambda: len(held.came) == 2, "round 2", 240, started)
        at_work = scene.serverapp()
        os.kill(scene.process.pid, signal.SIGKILL)
        scene.process.finished(10)
        (facts,) = [run for run in json.loads(on_server(scene.coordinator, "runs", "--json")[0])["runs"] if run["run_id"] == newest(scene)]
        assert facts["status"] in ("interrupted", "running")
        scene.process = up(scene.coordinator, scene.folder)
        held.go.set()
        assert started.finished(240) == 0, started.said
        assert at_work not in members(os.getpgid(scene.pid("superlink"))), "the old one has gone with its coordinator"
    assert last_json(started.said)["rounds_done"] == 2
    assert len(resumptions(scene, newest(scene))) == 1


def test_the_whole_coordinator_is_stopped_in_order_and_comes_back(scene: Scene) -> None:
    held = Held(2)
    with scene.sites(north=held, south=held):
        started = scene.begin(STUDY.with_changes({"seed": 13}), BOTH)
        wait_until(lambda: len(held.came) == 2, "round 2", 240, started)
        assert scene.process.stop() == 0
        assert all_at_work(scene.coordinator.home) == []
        table, _ = on_server(scene.coordinator, "status")
        assert "goes on when the coordinator runs again" in table
        assert not scene.events(newest(scene), "run_ended")
        scene.process = up(scene.coordinator, scene.folder)
        held.go.set()
        assert started.finished(240) == 0, started.said
    assert last_json(started.said)["rounds_done"] == 2


def test_the_superlink_is_away_for_longer_than_flowers_patience(scene: Scene) -> None:
    held = Held(2)
    with scene.sites(north=held, south=held):
        started = scene.begin(STUDY.with_changes({"seed": 14, "federation.round_timeout_seconds": 300.0}), BOTH)
        wait_until(lambda: len(held.came) == 2, "round 2", 240, started)
        os.kill(scene.process.pid, signal.SIGSTOP)  # so that nobody starts another one
        os.kill(scene.pid("superlink"), signal.SIGKILL)
        time.sleep(FLOWERS_PATIENCE_SECONDS + 15)
        os.kill(scene.process.pid, signal.SIGCONT)
        held.go.set()
        assert started.finished(300) == 0, started.said
    assert last_json(started.said)["rounds_done"] == 2
    assert len(resumptions(scene, newest(scene))) == 1


def test_after_three_tries_without_a_round_it_is_given_up_and_said(scene: Scene) -> None:
    held = Held(1)
    with scene.sites(north=held, south=held):
        started = scene.begin(STUDY.with_changes({"seed": 15, "federation.rounds": 1}), BOTH)
        for number in range(MOST_TRIES + 1):
            wait_until(lambda number=number: _works_again(scene, number), f"ServerApp {number + 1}", 240, started)
            os.kill(scene.serverapp(), signal.SIGKILL)
        assert started.finished(240) == ExitCode.FEDERATION
        run_id = newest(scene)
        assert f"resumed {MOST_TRIES} times without finishing a round" in started.said
        assert f"wardround-server resume {run_id[:8]}" in started.said
        assert [event.facts["how"] for event in scene.events(run_id, "run_ended")] == ["failed"]
        time.sleep(3)
        assert len(resumptions(scene, run_id)) == MOST_TRIES
        held.go.set()
        resumed = json.loads(on_server(scene.coordinator, "resume", run_id, "--json")[0])
    assert (resumed["rounds_done"], resumed["status"]) == (1, "finished:completed")


def _works_again(scene: Scene, number: int) -> bool:
    return len(all_at_work(scene.coordinator.home)) == 1 and len(resumptions(scene, newest(scene))) == number


def test_neither_a_stopped_run_nor_a_decision_is_resumed(scene: Scene) -> None:
    def refuses(site: object, message: object, instruction: object) -> object:
        return site.signed(Refusal(RefusalCode.PAUSED, site.hospital.name).to_records(), instruction)  # type: ignore[attr-defined]

    held = Held(1)
    with scene.sites(north=held, south=held):
        stopped = scene.begin(STUDY.with_changes({"seed": 16}), BOTH)
        wait_until(lambda: len(held.came) == 2, "round 1", 120, stopped)
        on_server(scene.coordinator, "stop", "last")
        assert stopped.finished(60) == ExitCode.FEDERATION
        first = newest(scene)
        held.go.set()
    with scene.sites(north=refuses, south=refuses):
        failed = scene.begin(STUDY.with_changes({"seed": 17}), BOTH)
        assert failed.finished(240) == ExitCode.FEDERATION
    assert scene.process.stop() == 0
    scene.process = up(scene.coordinator, scene.folder)
    with scene.sites(north=trains, south=trains) as sites:
        time.sleep(5)
        assert not any(site.rounds for site in sites.values())
    assert [event.facts["how"] for event in scene.events(first, "run_ended")] == ["stopped"]
    assert [event.facts["how"] for event in scene.events(newest(scene), "run_ended")] == ["failed"]
    assert resumptions(scene, first) == resumptions(scene, newest(scene)) == []
