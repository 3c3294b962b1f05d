# SPDX-License-Identifier: Apache-2.0
"""A coordinator that is really up, and sites that answer through its gateway, each as a thread of the test."""

import io
import threading
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from flwr.app import Message, RecordDict

from common.errors import WardroundError
from common.federation import EgressStatement
from common.flower_compat.fleet import FleetConnection, answer_to
from common.protocol import Evaluated, Instruction, Update, payload_sha256, with_egress, with_head
from server.cli import main
from simulations.processes import Background, command_line, wait_until
from tests.server.gateway.coordinator import Coordinator, Hospital, tls

SERVER = "wardround-server"
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
            connection.push(answer_to(pulled, records, 0.1))

    def signed(self, records: RecordDict, instruction: Instruction) -> RecordDict:
        """Records with a true statement about them."""
        from common.study import Study

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
    wait_until(lambda: is_ready(coordinator), "the coordinator is ready", 90, process)
    return process


def is_ready(coordinator: Coordinator) -> bool:
    from server.supervisor import UpFile

    found = UpFile.read(coordinator.home)
    return found is not None and found.state == "ready"


def on_server(coordinator: Coordinator, *arguments: str | Path, expect: int = 0) -> tuple[str, str]:
    """`wardround-server …` to its end, in this process; what it printed on stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([*map(str, arguments), "--home", str(coordinator.home.folder)])
    assert code == expect, f"exit code {code}, expected {expect}\n{out.getvalue()}{err.getvalue()}"
    return out.getvalue(), err.getvalue()
