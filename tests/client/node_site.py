# SPDX-License-Identifier: Apache-2.0
"""A hospital that is enrolled at a real SuperLink and has approved a study, and its node in a thread of the test."""

import dataclasses
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import yaml
from flwr.app import Message, RecordDict

from client.answering import Desk
from client.approving import approve, propose
from client.coordinator import tls_context
from client.daemon_log import DaemonLog
from client.enrol import prepare
from client.link import Link, Timing
from client.node import Node
from client.offers import store_offer
from client.site_home import SiteHome
from client.site_worker import SITE_APP, SiteWorker
from client.status import DaemonState, Stage, StatusBoard
from common.crypto.secrets import Secret
from common.crypto.site_keys import SiteKeys
from common.data.phantom import PhantomReader
from common.enrolment import Invitation
from common.federation import StartRecord
from common.flower_compat.fleet import FleetConnection, Pulled
from common.models.registry import initial_state
from common.protocol import FACTS, Arrays, Instruction, weights_sha256
from common.signed import Signed
from common.study import Study
from tests.common.flower_compat.loopback_link import LoopbackLink
from tests.support.studies import PRIVATE, small

STUDY_KEY, COORDINATOR = Secret(b"k" * 32), Secret(b"c" * 32)
TEST_APP = "tests.client.site_apps:app"
FAST = Timing(first=0.05, longest=0.2, not_welcome=0.2, stopping=5.0, after_reply=1.0)


@cache
def offered_study(name: str = "small") -> Study:
    return small(PRIVATE, **{"data.source": "npz", "name": name})


@cache
def weights() -> Arrays:
    return initial_state(offered_study())


def signed_start(study: Study, signer: Secret = STUDY_KEY, **changes: object) -> Signed:
    facts = {
        "study_id": study.id,
        "run_id": secrets.token_hex(16),
        "sites": ("north", "south"),
        "min_sites": 1,
        "initial_weights_sha256": weights_sha256(weights()),
        "receipt_key": COORDINATOR.signer.public_key,
        "version": "0",
        "created": time.time(),
        "expires": time.time() + 3600,
    }
    return StartRecord.model_validate(facts | changes).signed(signer.signer)


class WatchedConnection(FleetConnection):
    """The real connection; says what was asked for."""

    fetched: list[str]

    def fetch(self, pulled: Pulled, give_up: Callable[[], bool]) -> Message:
        self.fetched.append(pulled.message_id)
        return super().fetch(pulled, give_up)


@dataclass
class NodeSite:
    """The hospital `north`."""

    home: SiteHome
    link: LoopbackLink
    study: Study
    start: Signed
    fetched: list[str] = field(default_factory=list)
    connections: list[FleetConnection] = field(default_factory=list)
    worker: SiteWorker = field(default_factory=lambda: SiteWorker(TEST_APP))
    node: Node | None = None
    logs: list[DaemonLog] = field(default_factory=list)

    @property
    def run_id(self) -> str:
        return StartRecord.model_validate_json(self.start.record).run_id

    @property
    def config(self) -> dict[str, str]:
        """What the run is started with."""
        return {"study": self.study.canonical_json, "signature": self.start.to_json()}

    @property
    def folder(self) -> Path:
        return self.home.study(self.study.id)

    @property
    def node_id(self) -> int:
        return self.link.register(SiteKeys.read(self.home.folder).node_key, self.home.folder.parent.name)

    @property
    def state(self) -> DaemonState:
        state = DaemonState.read(self.home)
        assert state is not None
        return state

    def behave(self, how: str) -> None:
        (self.folder / "behave").write_text(how)

    def instruction(self, round_number: int = 1, train: bool = True, **changes: object) -> RecordDict:
        asked = Instruction(self.run_id, self.study.canonical_json, round_number, train, not train, weights())
        return dataclasses.replace(asked, **changes).to_records()

    def connect(self) -> FleetConnection:
        connection = WatchedConnection(self.link.url, tls_context(self.home), SiteKeys.read(self.home.folder).node_key)
        connection.fetched = self.fetched
        self.connections.append(connection)
        return connection

    def build(self, timing: Timing = FAST) -> Node:
        log, board = DaemonLog(self.home.logs), StatusBoard(self.home, "test")
        self.logs.append(log)
        self.node = Node(Link(self.connect, board, log, str, timing), Desk(self.home, self.worker, board), self.worker, board, log)
        return self.node

    @contextmanager
    def running(self, app: str = TEST_APP, timing: Timing = FAST) -> Iterator[Node]:
        """The node in a thread."""
        self.worker = SiteWorker(app)
        node = self.build(timing)
        thread = threading.Thread(target=node.run)
        thread.start()
        try:
            yield node
        finally:
            while thread.is_alive():
                node.stop()
                thread.join(0.2)

    def close(self) -> None:
        for open_one in (*self.connections, *self.logs):
            open_one.close()

    def wait_online(self, seconds: float = 30.0) -> None:
        wait_until(lambda: self.state.stage is Stage.IDLE, seconds)

    def begun(self) -> int:
        """Wait until the app works on a message; the id of its process."""
        path = self.folder / "begun"
        wait_until(lambda: path.exists() and path.read_text() != "")
        number = int(path.read_text())
        path.unlink()
        return number


def wait_until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def code(reply: Message) -> str:
    """The refusal code of a reply; its kind when it is none."""
    facts = reply.content[FACTS]
    return str(facts.get("code", facts["kind"]))


def write_data(path: Path, study: Study) -> None:
    """The phantom's images as a hospital's npz file."""
    table = PhantomReader().read(study.data.model_copy(update={"source": "phantom"}), None)
    np.savez(path, images=table.images, labels=table.labels, patient_id=table.patient_ids)


def enrolled_site(folder: Path, link: LoopbackLink, data: Path) -> SiteHome:
    """The folder as `init` and hospital IT leave it."""
    home = SiteHome(folder / "north")
    invitation = Invitation(
        site="north",
        url=link.url,
        ca_certificate=link.ca_certificate.read_text(),
        study_key=STUDY_KEY.signer.public_key,
        token="7" * 64,
        expires=time.time() + 3600,
    )
    prepare(home, invitation, time.time())
    settings = yaml.safe_load(home.config.read_text())
    limits = {**settings["limits"], "epsilon_per_account": 100.0, "delta": 1e-5}
    settings |= {"cohorts": {"chest": {"data": str(data), "nominal_patients": 60}}, "threads": 1, "limits": limits}
    home.config.write_text(yaml.safe_dump(settings))
    return home


def approved_site(folder: Path, link: LoopbackLink, data: Path, runs: int = 1) -> NodeSite:
    """The hospital, with the study approved; its node is registered."""
    home, study = enrolled_site(folder, link, data), offered_study()
    start = signed_start(study)
    store_offer(home, {"study": study.canonical_json, "start": start.model_dump()})
    approve(home, propose(home, study.id, None, runs, time.time()), "the test", time.time())
    link.register(SiteKeys.read(home.folder).node_key, folder.name)
    return NodeSite(home, link, study, start)


__all__ = ["SITE_APP", "NodeSite", "approved_site", "code", "enrolled_site", "offered_study", "signed_start", "wait_until", "write_data"]
