# SPDX-License-Identifier: Apache-2.0
"""The real coordinator on loopback: Flower's SuperLink, our executor and gateway, sites behind the gateway."""

import json
import os
import signal
import sqlite3
import stat
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message, RecordDict
from safetensors.numpy import load_file

from common.errors import ExitCode
from common.federation import RESUME_KEY, SIGNATURE_KEY, STUDY_KEY
from common.flower_compat import control
from common.protocol import Instruction
from common.riders import receipt_of
from server.launch import FILES, bundle
from server.offers import offers
from server.supervisor import LOCK_FILE, UP_FILE, UpFile
from simulations.processes import wait_until
from tests.server.gateway.coordinator import PASSPHRASE, Coordinator
from tests.server.offering import offered, start_of
from tests.server.up import STUDY, Held, Scene, SiteThread, argument_lists, last_json, on_server, opened, trains
from tests.support.studies import write_study


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("up")
    coordinator = Coordinator.make(folder)
    (coordinator.home.folder / LOCK_FILE).touch()
    UpFile(999_999_999, "ready", 0.0, coordinator.url, {}).write(coordinator.home.folder / UP_FILE)
    with opened(coordinator, folder) as made:
        yield made


def test_a_study_runs_from_the_offer_to_the_model(scene: Scene) -> None:
    hold, receipts = threading.Event(), {}

    def slow(site: SiteThread, message: Message, instruction: Instruction) -> RecordDict | None:
        receipts[site.hospital.name, instruction.round] = receipt_of(message.content)
        hold.wait(60)
        return trains(site, message, instruction)

    with scene.sites(north=slow, south=slow, west=trains) as sites:
        started = scene.begin(STUDY, ("north", "south"))
        wait_until(lambda: len(receipts) == 2, "both sites have their message", 60, started)
        check_no_secret_is_visible(scene)
        now = json.loads(on_server(scene.coordinator, "status", "--json")[0])
        assert now["up"]["state"] == "ready"
        assert now["runs"][-1]["status"] == "running"
        assert {site["name"]: site["connected"] for site in now["sites"]} == {"north": True, "south": True, "west": True}
        hold.set()
        assert started.finished(90) == 0, started.said
        assert not sites["west"].rounds, "it was not named"
        assert not sites["north"].errors
    facts = last_json(started.said)
    assert (facts["status"], facts["rounds_done"], facts["approved"]) == ("finished:completed", 2, ["north", "south"])
    check_what_was_kept(scene, facts["run_id"])
    assert json.loads(receipts["north", 2])["head"] == "head of north"
    assert json.loads(receipts["south", 2])["head"] == "head of south"
    assert json.loads(on_server(scene.coordinator, "runs", "--json")[0])["runs"][-1]["run_id"] == facts["run_id"]
    assert "wardround-run" in on_server(scene.coordinator, "logs", facts["run_id"][:8])[0]
    table, _ = on_server(scene.coordinator, "status")
    assert "finished:completed" in table
    assert facts["run_id"][:8] in table


def check_no_secret_is_visible(scene: Scene) -> None:
    """No command line of the whole tree holds a key, the executor's secret, or the ServerApp's token."""
    home = scene.coordinator.home
    with closing(sqlite3.connect(home.superlink_database)) as database:
        tokens = [row[0] for row in database.execute("SELECT token FROM task WHERE token IS NOT NULL")]
    files = (home.superexec_secret, home.study_key, home.coordinator_key)
    secrets = [*tokens, *(path.read_text().strip() for path in files), PASSPHRASE.decode()]
    secrets += [line for line in home.certificate_key.read_text().splitlines() if "-" not in line]
    lists = argument_lists(scene.everybody())
    assert len(tokens) == 1
    assert len(lists) >= 5, "up, SuperLink, executor, gateway, ServerApp"
    assert sum("common.flower_compat.serverapp" in text for text in lists.values()) == 1
    for pid, text in lists.items():
        for secret in secrets:
            assert secret not in text, f"process {pid} shows a secret"
    assert list((scene.home / "tokens").iterdir()) == [], "the token's file is gone as soon as it was read"
    assert stat.S_IMODE((scene.home / "tokens").stat().st_mode) == 0o700
    for path in (scene.home / "logs").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def check_what_was_kept(scene: Scene, run_id: str) -> None:
    """Each reply with its size, the site's signature and our receipt; the model is the initial one plus two updates of ones."""
    details = scene.store(run_id).details(run_id)
    assert [(number, detail.kind, detail.site, detail.outcome) for number, detail in details] == [
        (1, "train", "north", "update"),
        (1, "train", "south", "update"),
        (2, "train", "north", "update"),
        (2, "train", "south", "update"),
        (2, "evaluate", "north", "evaluated"),
        (2, "evaluate", "south", "evaluated"),
    ]
    for _, detail in details:
        assert detail.egress_head == "e" * 64
        assert detail.bytes_down > 1000
        assert detail.receipt is not None
    assert details[0][1].bytes_up > 1000
    assert scene.store(run_id).rounds(run_id)[1].updates == 2
    run = json.loads((scene.coordinator.home.run(run_id) / "run.json").read_text())
    assert run["node_keys"]["north"] == scene.hospitals["north"].keys.public().node
    model = load_file(scene.coordinator.home.run(run_id) / "checkpoints" / "round-00002.safetensors")
    from server.initial import initial_model

    initial = initial_model(STUDY)
    for name, value in initial.items():
        np.testing.assert_allclose(model[f"model/{name}"], value + 2, atol=1e-5)


def test_only_one_up_in_a_folder(scene: Scene) -> None:
    refused = on_server(scene.coordinator, "up", expect=ExitCode.REFUSED)
    assert "is running in this folder" in refused[1]
    assert scene.process.code is None


@pytest.fixture
def other_home(scene: Scene, tmp_path: Path) -> Coordinator:
    """Another coordinator's folder, which wants the same ports."""
    other = Coordinator.make(tmp_path)
    settings = other.home.settings.model_copy(
        update={
            "superlink_port": scene.coordinator.home.settings.superlink_port,
            "listen_port": scene.coordinator.home.settings.listen_port,
        }
    )
    other.home.write_settings(settings)
    return other


def test_ports_taken_by_another(scene: Scene, other_home: Coordinator) -> None:
    refused = on_server(other_home, "up", expect=ExitCode.BAD_INPUT)
    assert refused[1].count("cannot listen on 127.0.0.1") == 2
    assert not (other_home.home.folder / UP_FILE).exists()


def test_neither_foreign_code_nor_an_unsigned_study_runs(scene: Scene, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    hostile = f"from pathlib import Path\nPath({str(marker)!r}).touch()\n".encode()
    another = FILES["pyproject.toml"].replace(b"server.app:app", b"wardround_evil:app")
    evil = {**FILES, "pyproject.toml": another, "wardround_evil.py": hostile, "server/__init__.py": hostile, "server/app.py": hostile}
    record = offered(scene.coordinator, STUDY, ("north", "south"))
    _, signature = start_of(scene.coordinator, record)
    longer = STUDY.with_changes({"federation.rounds": 50}).canonical_json
    tries = {
        "FOREIGN_BUNDLE": [(control.build_bundle(evil), {})],
        "not the one that was signed": [(bundle(), {STUDY_KEY: longer, SIGNATURE_KEY: signature, RESUME_KEY: ""})],
    }
    home = scene.coordinator.home
    with scene.sites(north=trains, south=trains) as sites:
        numbers = {why: [control.start_run(home, *given) for given in runs] for why, runs in tries.items()}
        everything = [number for some in numbers.values() for number in some]
        wait_until(lambda: all(run.is_over for run in control.runs(home, everything).values()), "the runs are over", 90)
        assert not any(site.rounds for site in sites.values())
    for why, found in numbers.items():
        for run in control.runs(home, found).values():
            assert run.status == "finished:failed"
            assert why in run.details
    assert not marker.exists()
    assert not list((scene.home / "flower").rglob("wardround_evil.py"))


@pytest.mark.slow
def test_a_killed_serverapp_is_replaced_without_anybodys_word(scene: Scene) -> None:
    held = Held(2)
    with scene.sites(north=held, south=held) as sites:
        started = scene.begin(STUDY.with_changes({"seed": 2}), ("north", "south"))
        wait_until(lambda: len(held.came) == 2, "round 2", 240, started)
        os.kill(scene.serverapp(), signal.SIGKILL)
        held.go.set()
        assert started.finished(240) == 0, started.said
        assert all(site.rounds.count(1) == 1 for site in sites.values()), "round 1 is not trained again"
    facts = last_json(started.said)
    assert (facts["status"], facts["rounds_done"], len(facts["flower_run_ids"])) == ("finished:completed", 2, 2)
    (resumed,) = scene.events(facts["run_id"], "run_resumed")
    assert resumed.facts["automatic"] is True
    assert "killed by signal 9" in str(resumed.facts["reason"])
    assert "it goes on" in started.said, "whoever started it hears of it, and waits on"
    assert [event.facts.get("how") for event in scene.events(facts["run_id"], "run_ended")] == ["finished"]


@pytest.mark.slow
def test_stopped_then_resumed_from_its_checkpoint_under_the_same_approvals(scene: Scene) -> None:
    hold = threading.Event()

    def stuck_in_two(site: SiteThread, message: Message, instruction: Instruction) -> RecordDict | None:
        if instruction.round == 2 and instruction.train and not hold.is_set():
            return None
        return trains(site, message, instruction)

    study = STUDY.with_changes({"seed": 3})
    with scene.sites(north=stuck_in_two, south=stuck_in_two) as sites:
        started = scene.begin(study, ("north", "south"))
        wait_until(lambda: all(site.rounds == [1, 2] for site in sites.values()), "round 2", 240, started)
        run_id = offers(scene.coordinator.state)[-1].run_id
        stopped = on_server(scene.coordinator, "stop", run_id[:10])
        assert "stopped" in stopped[1]
        assert started.finished(60) == ExitCode.FEDERATION
        assert "finished:stopped" in started.said
        hold.set()
        assert json.loads(on_server(scene.coordinator, "runs", "--json")[0])["runs"][-1]["status"] == "finished:stopped"
        resumed = json.loads(on_server(scene.coordinator, "resume", run_id[:10], "--json")[0])
    assert (resumed["run_id"], resumed["rounds_done"], resumed["status"]) == (run_id, 2, "finished:completed")
    assert len(resumed["flower_run_ids"]) == 2
    assert all(site.rounds == [1, 2, 2, 2] for site in sites.values()), "round 1 is not trained again"


@pytest.mark.slow
def test_the_run_survives_the_death_of_superlink_executor_and_gateway(scene: Scene) -> None:
    hold = threading.Event()

    def slow(site: SiteThread, message: Message, instruction: Instruction) -> RecordDict | None:
        hold.wait(60)
        return trains(site, message, instruction)

    before = {name: scene.pid(name) for name in ("superlink", "executor", "gateway")}
    with scene.sites(north=slow, south=slow) as sites:
        started = scene.begin(STUDY.with_changes({"seed": 4, "federation.rounds": 1}), ("north", "south"))
        wait_until(lambda: any("serverapp" in text for text in argument_lists(scene.everybody()).values()), "the ServerApp runs", 60)
        time.sleep(3)
        for pid in before.values():
            os.kill(pid, signal.SIGKILL)
        hold.set()
        wait_until(lambda: restarted(scene, before), "all are back", 60)
        assert started.finished(90) == 0, started.said
        assert sites["north"].rounds
    assert last_json(started.said)["rounds_done"] == 1


def restarted(scene: Scene, before: dict[str, int]) -> bool:
    found = UpFile.read(scene.coordinator.home)
    return (
        found is not None and found.state == "ready" and all(found.children[name]["pid"] not in (None, pid) for name, pid in before.items())
    )


def test_start_says_what_is_wrong_before_it_offers_anything(scene: Scene, tmp_path: Path) -> None:
    path, known = write_study(STUDY, tmp_path), len(offers(scene.coordinator.state))
    _, unknown = on_server(scene.coordinator, "start", path, "--sites", "north,nobody", "--min-sites", "1", expect=ExitCode.BAD_INPUT)
    assert "nobody is unknown" in unknown
    assert "the study needs 2, and this may only raise it" in unknown
    assert len(offers(scene.coordinator.state)) == known


def test_an_offer_that_nobody_answers(scene: Scene) -> None:
    record = offered(scene.coordinator, STUDY, ("north", "west"), min_sites=2)
    _, nobody = on_server(scene.coordinator, "resume", record.run_id, "--wait-seconds", "0", expect=ExitCode.FEDERATION)
    assert "no answer from north, west" in nobody
    assert "taken back" in on_server(scene.coordinator, "stop", "last")[1]
    assert json.loads(on_server(scene.coordinator, "runs", "--json")[0])["runs"][-1]["status"] == "withdrawn"
