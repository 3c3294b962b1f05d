# SPDX-License-Identifier: Apache-2.0
"""A coordinator that is really up, and sites that answer through its gateway, each as a thread of the test."""

import io
import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import Message, RecordDict

from common.errors import WardroundError
from common.events import Event, read_events
from common.federation import EgressStatement
from common.flower_compat.fleet import FleetConnection, Outgoing, Unreachable, answer_to
from common.protocol import Evaluated, Instruction, Update
from common.riders import payload_sha256, with_egress, with_head
from common.study import Study
from server.children import members
from server.cli import main
from server.offers import offers
from server.run_processes import all_at_work, lock_folder
from server.runs import RunStore
from server.supervisor import UpFile
from simulations.processes import Background, command_line, wait_until
from tests.server.gateway.coordinator import Coordinator, Hospital, tls
from tests.server.offering import answer, send
from tests.support.studies import small, write_study

SERVER = "wardround-server"
STUDY = small(**{"federation.rounds": 2, "data.image_size": 16, "federation.round_timeout_seconds": 60.0, "evaluation.every": 0})
Behaviour = Callable[["SiteThread", Message, Instruction], RecordDict | None]


@dataclass
class SiteThread:
    """One hospital that takes messages from the gateway and answers as `behaviour` says; None is silence."""

    coordinator: Coordinator
    hospital: Hospital
    behaviour: Behaviour
    rounds: list[int] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    """What went wrong since it was online."""
    stopping: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._run, name=self.hospital.name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.stopping.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        connection = FleetConnection(self.coordinator.url, tls(self.coordinator, self.hospital), self.hospital.keys.node_key)
        active = False
        while not self.stopping.wait(0.2):
            try:
                if not active:
                    connection.activate()
                    active = True
                self._answer(connection)
            except WardroundError as error:
                if active:
                    self.errors.append(f"{type(error).__name__}: {error}")
                self.stopping.wait(0.3)
        try:
            connection.deactivate()
        except WardroundError as error:
            self.errors.append(str(error))
        connection.close()

    def _answer(self, connection: FleetConnection) -> None:
        pulled = connection.pull()
        if pulled is None:
            return
        message = connection.fetch(pulled, self.stopping.is_set)
        connection.confirm(pulled)
        instruction = Instruction.from_records(message.content)
        records = self.behaviour(self, message, instruction)
        self.rounds.append(instruction.round)
        if records is not None:
            self._push(connection, answer_to(pulled, records, 0.1))

    def _push(self, connection: FleetConnection, answer: Outgoing) -> None:
        """Until it has arrived, as the daemon does: whoever asks for the next message instead has lost it."""
        while not self.stopping.is_set():
            try:
                return connection.push(answer)
            except Unreachable as error:
                self.errors.append(f"{type(error).__name__}: {error}")
                self.stopping.wait(0.3)

    def signed(self, records: RecordDict, instruction: Instruction) -> RecordDict:
        """Records with a true statement about them."""
        statement = EgressStatement(
            study_id=Study.from_canonical_json(instruction.study).id,
            run_id=instruction.run_id,
            round=instruction.round,
            incoming_sha256=instruction.sha256,
            payload_sha256=payload_sha256(records),
            number=len(self.rounds),
            head="e" * 64,
        )
        return with_egress(records, statement.signed(self.hospital.keys.secret.signer).to_json())


def trains(site: SiteThread, message: Message, instruction: Instruction) -> RecordDict:
    """An update of ones, or word that the model was evaluated."""
    if instruction.train:
        delta = {name: np.ones_like(value) for name, value in instruction.model.items()}
        records = Update(instruction.run_id, instruction.round, site.hospital.name, delta).to_records()
    else:
        records = Evaluated(instruction.run_id, instruction.round, site.hospital.name).to_records()
    return site.signed(with_head(records, f"head of {site.hospital.name}"), instruction)


def up(coordinator: Coordinator, folder: Path) -> Background:
    """`wardround-server up`, ready."""
    process = Background(command_line(SERVER, "up", "--home", coordinator.home.folder), folder / "up.out")
    wait_until(lambda: is_ready(coordinator, process.pid), "the coordinator is ready", 90, process)
    return process


def is_ready(coordinator: Coordinator, pid: int) -> bool:
    """Whether that very process says so: one that was killed leaves its word behind."""
    found = UpFile.read(coordinator.home)
    return found is not None and (found.pid, found.state) == (pid, "ready")


def on_server(coordinator: Coordinator, *arguments: str | Path, expect: int = 0) -> tuple[str, str]:
    """`wardround-server …` to its end, in this process; what it printed on stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([*map(str, arguments), "--home", str(coordinator.home.folder)])
    assert code == expect, f"exit code {code}, expected {expect}\n{out.getvalue()}{err.getvalue()}"
    return out.getvalue(), err.getvalue()


@dataclass
class Scene:
    coordinator: Coordinator
    process: Background
    folder: Path
    hospitals: dict[str, Hospital]

    @property
    def home(self) -> Path:
        return self.coordinator.home.folder

    def pid(self, child: str) -> int:
        found = UpFile.read(self.coordinator.home)
        assert found is not None
        return int(found.children[child]["pid"] or 0)

    def everybody(self) -> list[int]:
        return [self.process.pid, *members(os.getpgid(self.pid("superlink")))]

    @contextmanager
    def sites(self, **behaviours: Behaviour) -> Iterator[dict[str, SiteThread]]:
        """These sites, online until the end of the block."""
        threads = {name: SiteThread(self.coordinator, self.hospitals[name], behaviour) for name, behaviour in behaviours.items()}
        try:
            yield threads
        finally:
            for thread in threads.values():
                thread.stop()

    def begin(self, study: Study, names: tuple[str, ...], *options: str, approving: tuple[str, ...] | None = None) -> Background:
        """`start`, and the approvals of its sites."""
        path, before = write_study(study, self.folder), len(offers(self.coordinator.state))
        command = command_line(SERVER, "start", path, "--sites", ",".join(names), "--json", *options, "--home", self.home)
        started = Background(command, self.folder / f"start-{before}.out")
        wait_until(lambda: len(offers(self.coordinator.state)) > before, "the offer", 60, started)
        for name in names if approving is None else approving:
            hospital = self.hospitals[name]
            send(self.coordinator, hospital, answer(hospital, offers(self.coordinator.state)[-1].record, runs=100))
        return started

    def serverapp(self) -> int:
        """Process id of the one ServerApp that is at work."""
        (flower_run_id,) = all_at_work(self.coordinator.home)
        path = lock_folder(self.coordinator.home) / str(flower_run_id)
        wait_until(lambda: bool(path.read_text(encoding="ascii")), "its process id", 30)
        return int(path.read_text(encoding="ascii"))

    def events(self, run_id: str, *names: str) -> list[Event]:
        """The events of a run that have one of these names."""
        return [event for event in read_events(self.coordinator.home.run(run_id) / "events.jsonl") if event.name in names]

    def store(self, run_id: str) -> RunStore:
        return RunStore(self.coordinator.home.run(run_id) / "rounds.sqlite")


@dataclass
class Held:
    """Sites that train only once `go` is set, in the round `number`; `came` names those whose message is there."""

    number: int
    came: list[str] = field(default_factory=list)
    go: threading.Event = field(default_factory=threading.Event)

    def __call__(self, site: SiteThread, message: Message, instruction: Instruction) -> RecordDict | None:
        if instruction.train and instruction.round == self.number:
            self.came.append(site.hospital.name)
            self.go.wait(200)
        return trains(site, message, instruction)


def last_json(text: str) -> dict:
    return json.loads(text.splitlines()[-1])


def argument_lists(pids: list[int]) -> dict[int, str]:
    return {pid: Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode() for pid in pids if Path(f"/proc/{pid}").exists()}


@contextmanager
def opened(coordinator: Coordinator, folder: Path) -> Iterator[Scene]:
    """The coordinator up, with three sites that are enrolled, until the end of the block; then nobody is left."""
    hospitals = {name: coordinator.hospital(name, folder) for name in ("north", "south", "west")}
    scene = Scene(coordinator, up(coordinator, folder), folder, hospitals)
    try:
        yield scene
    finally:
        group = os.getpgid(scene.pid("superlink"))
        assert scene.process.stop() == 0
        assert members(group) == []
