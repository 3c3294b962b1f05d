# SPDX-License-Identifier: Apache-2.0
"""What the daemon asks the coordinator beside the rounds, against a real TLS server that answers as the test says."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from client.approvals import Approvals
from client.chores import Chores
from client.daemon_log import DaemonLog
from client.enrol import prepare
from client.own_certificate import read_own
from client.site import open_ledger
from client.site_home import SiteHome
from client.status import DaemonState, StatusBoard
from common.crypto.certificates import Authority, not_after
from common.crypto.secrets import Secret
from common.errors import RefusedError
from common.federation import ApprovalRecord
from common.privacy.charges import ChargeKey, Line
from common.privacy.receipts import make_receipt
from tests.client.enrolled import certified, invitation_to, new_authority
from tests.client.ledger.support import EVENT
from tests.client.node_site import COORDINATOR, STUDY_KEY, offered_study, signed_start
from tests.support.tls_server import TlsServer, serving, write_server_certificate

DAY = 86400.0


class Coordinator:
    """What the coordinator answers."""

    def __init__(self, authority: Authority) -> None:
        self.authority = authority
        self.studies: list[dict[str, Any]] = []
        self.status = 200
        self.refused: set[str] = set()
        self.ledger: str | None = None

    def answer(self, method: str, path: str, body: bytes, certificate: bytes | None) -> tuple[int, Any]:
        if self.status != 200 or path.rsplit("/")[-1].split("?")[0] in self.refused:
            return max(self.status, 400), {"code": "X", "message": "not today"}
        if path.endswith("/renew"):
            request = json.loads(body)["certificate_request"]
            return 200, {"status": "approved", "certificate": self.authority.client_certificate(request, "north", 90, time.time())}
        if path.endswith("/studies"):
            return 200, {"studies": self.studies}
        return 200, {"receipts": [], "ledger": self.ledger}


@pytest.fixture
def coordinator() -> Coordinator:
    return Coordinator(new_authority())


@pytest.fixture
def server(tmp_path: Path, coordinator: Coordinator) -> Iterator[TlsServer]:
    write_server_certificate(tmp_path / "server", coordinator.authority)
    with serving(tmp_path / "server", coordinator.answer) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, coordinator: Coordinator, server: TlsServer) -> SiteHome:
    home = SiteHome(tmp_path / "north")
    prepare(home, invitation_to(coordinator.authority, server.url, study_key=STUDY_KEY.signer.public_key), time.time())
    return certified(home, coordinator.authority)


@pytest.fixture
def renewals() -> list[str]:
    return []


@pytest.fixture
def chores(home: SiteHome, renewals: list[str]) -> Iterator[Chores]:
    log = DaemonLog(home.logs)
    made = Chores(home, StatusBoard(home, "1"), log, lambda: renewals.append("x"))
    yield made
    made._coordinator.close()
    log.close()


def events(home: SiteHome) -> list[str]:
    return [str(json.loads(line)["event"]) for line in (home.logs / "daemon.log").read_text().splitlines()]


def offer() -> dict[str, Any]:
    study = offered_study()
    return {"study": study.canonical_json, "start": signed_start(study).model_dump()}


def test_an_offer_is_stored_and_nothing_else_happens(home: SiteHome, coordinator: Coordinator, chores: Chores) -> None:
    coordinator.studies = [offer()]
    chores.turn()
    chores.turn()
    folder = home.study(offered_study().id)
    assert [path.name for path in folder.iterdir()] == ["offer.json"]
    assert json.loads((folder / "offer.json").read_text())["study"] == offered_study().canonical_json
    assert events(home) == ["study offered"] and not home.approvals.exists()


def test_an_offer_that_cannot_be_believed_is_logged_once(home: SiteHome, coordinator: Coordinator, chores: Chores) -> None:
    study = offered_study()
    forged = {"study": study.canonical_json, "start": signed_start(study, COORDINATOR).model_dump()}
    coordinator.studies = [forged, {"study": 7}, offer()]
    chores.turn()
    chores.turn()
    assert sorted(events(home)) == ["offer ignored", "offer ignored", "study offered"]


def test_a_coordinator_that_says_no_is_noted_once_and_asked_again(home: SiteHome, coordinator: Coordinator, chores: Chores) -> None:
    coordinator.status = 401
    chores.turn()
    chores.turn()
    assert events(home) == ["coordinator"]
    state = DaemonState.read(home)
    assert state is not None and "not let in" in str(state.last_error)
    coordinator.status, coordinator.studies = 200, [offer()]
    chores.turn()
    assert events(home)[-1] == "study offered"


def test_a_renewal_is_told_to_the_node(home: SiteHome, coordinator: Coordinator, chores: Chores, renewals: list[str]) -> None:
    chores.turn()
    assert renewals == []
    certified(home, coordinator.authority, days=20, now=time.time() - 15 * DAY)
    chores.turn()
    chores.turn()
    own = read_own(home)
    assert own is not None and not_after(own) > time.time() + 80 * DAY
    assert renewals == ["x"]


@pytest.mark.parametrize("refused", ["studies", "receipts"])
def test_what_is_refused_keeps_nothing_else_from_its_turn(
    home: SiteHome, coordinator: Coordinator, chores: Chores, renewals: list[str], refused: str
) -> None:
    certified(home, coordinator.authority, days=20, now=time.time() - 15 * DAY)
    coordinator.refused, coordinator.studies = {refused, "approvals"}, [offer()]
    chores.turn()
    assert renewals == ["x"]
    assert ("study offered" in events(home)) == (refused != "studies")
    assert events(home).count("coordinator") == 1


def test_an_approval_that_is_refused_keeps_nothing_else_from_its_turn(
    home: SiteHome, coordinator: Coordinator, chores: Chores, renewals: list[str]
) -> None:
    study = offered_study()
    decision = {"site": "north", "study_id": study.id, "decision": "rejected", "cohort": "", "runs": 0, "client_version": "1"}
    facts = {**decision, "initial_weights_sha256": "0" * 64, "epsilon_total": None, "approved_by": "IT", "created": time.time()}
    Approvals(home).append(ApprovalRecord.model_validate(facts))
    certified(home, coordinator.authority, days=20, now=time.time() - 15 * DAY)
    coordinator.refused, coordinator.studies = {"approvals"}, [offer()]
    chores.turn()
    assert renewals == ["x"] and "study offered" in events(home) and "coordinator" in events(home)


def test_the_receipt_for_the_ledger_is_kept_and_shows_an_old_copy(home: SiteHome, coordinator: Coordinator, chores: Chores) -> None:
    """A ledger that was put back from an old copy is known as one before any message has come."""
    study = home.study(offered_study().id)
    study.mkdir(parents=True)
    facts = {"name": "north", "dataset": "none", "nominal_patients": 5, "home": "../..", "coordinator_key": COORDINATOR.signer.public_key}
    (study / "site.json").write_text(json.dumps(facts))
    book = open_ledger(home.folder)
    account = book.register({Line.TRAINING: ["p1"], Line.HELD_OUT: ["p2"]}, 1e-5)
    old = home.ledger.read_bytes()
    book.reserve(ChargeKey(account, study.name, "a" * 32, 1, "b" * 64), EVENT, 4)
    coordinator.ledger = make_receipt(book.signed_head(), COORDINATOR.signer)
    chores.turn()
    chores.turn()
    assert home.receipts.read_text().splitlines() == [coordinator.ledger]
    open_ledger(home.folder).check_not_behind()
    home.ledger.write_bytes(old)
    with pytest.raises(RefusedError, match="LEDGER_BEHIND"):
        open_ledger(home.folder).check_not_behind()


def test_a_receipt_for_the_ledger_that_cannot_be_believed_is_logged_once(home: SiteHome, coordinator: Coordinator, chores: Chores) -> None:
    coordinator.ledger = make_receipt(open_ledger(home.folder).signed_head(), Secret(b"x" * 32).signer)
    chores.turn()
    chores.turn()
    assert events(home) == ["receipt ignored"] and not home.receipts.exists()
