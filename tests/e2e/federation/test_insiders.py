# SPDX-License-Identifier: Apache-2.0
"""Hospitals that are enrolled and behave badly while two honest ones train: each attempt is refused, logged, and the run goes on."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx
import psutil
import pytest

from common.errors import ExitCode
from common.study import Study
from simulations.processes import Background, wait_until
from tests.common.flower_compat.attacker import FleetAttacker, PullMessagesResponse, PullObjectResponse, parsed
from tests.support.federation import GUEST, HONEST, Federation
from tests.support.studies import write_study

FIRST, SECOND = HONEST
REQUESTS = 10_000
MIB = 1 << 20


@dataclass(frozen=True)
class LongRun:
    """A run of two hospitals that lasts as long as the tests need it. The third was invited to it and has not approved."""

    federation: Federation
    study: Study
    run_id: str
    process: Background

    @property
    def flower_run(self) -> int:
        return self.federation.flower_run(self.run_id)

    def rounds(self) -> int:
        """Rounds that are done."""
        return len({row["round"] for row in self.federation.outcomes(self.run_id)})

    def goes_on(self) -> None:
        """Wait for another round in which both honest hospitals gave an update."""
        before = self.rounds()
        wait_until(lambda: self.rounds() >= before + 2, "the run goes on", 60, self.process)
        last = [row for row in self.federation.outcomes(self.run_id) if row["round"] > before]
        assert {row["site"]: row["outcome"] for row in last} == dict.fromkeys(HONEST, "update")


@pytest.fixture(scope="module")
def long_run(federation: Federation) -> Iterator[LongRun]:
    study = federation.study("long", **{"federation.rounds": 400, "federation.min_sites": 2})
    offered = federation.offer(write_study(study, federation.folder), (*HONEST, GUEST), "--wait-seconds", "0")
    assert offered.finished(120) == ExitCode.FEDERATION, offered.said
    for name in HONEST:
        federation.wait_for_offer(federation.hospitals[name], study.id)
        federation.approve(federation.hospitals[name], study.id)
    run_id = str(federation.rows("SELECT run_id FROM offer WHERE study_id = ?", study.id)[0]["run_id"])
    wait_until(lambda: len(federation.rows("SELECT site FROM approval WHERE study_id = ?", study.id)) == 2, "both have approved", 120)
    process = federation.on_server_in_background("resume", run_id, "--wait-seconds", "0")
    store = federation.coordinator / "runs" / run_id / "rounds.sqlite"
    wait_until(lambda: store.exists() and LongRun(federation, study, run_id, process).rounds() >= 2, "two rounds", 300, process)
    yield LongRun(federation, study, run_id, process)
    federation.on_server("stop", run_id)
    process.stop()


def test_one_site_cannot_read_anothers_objects_by_their_true_ids(long_run: LongRun) -> None:
    """Flower itself checks only that the run is on: whoever knows an id gets the object."""
    federation = long_run.federation
    seen: set[str] = set()
    deadline = time.monotonic() + 60
    with federation.attacker(SECOND, SECOND) as attacker:
        while len(seen) < 20 and time.monotonic() < deadline:
            for object_id in foreign_objects(federation) - seen:
                answer = attacker.pull_object(long_run.flower_run, object_id)
                assert (answer.status_code, answer.json()["code"]) == (403, "NOT_ADDRESSED")
                seen.add(object_id)
    assert len(seen) >= 20, "the test never saw an object of the other site"
    long_run.goes_on()


def foreign_objects(federation: Federation) -> set[str]:
    """Ids of objects in Flower's store that were never addressed to the second site: replies of both, messages to the first."""
    mine = {row["object_id"] for row in federation.rows("SELECT object_id FROM addressed WHERE site = ?", SECOND)}
    return {row["object_id"] for row in federation.superlink_rows("SELECT object_id FROM objects")} - mine


def test_without_the_gateway_flower_would_have_given_it(long_run: LongRun) -> None:
    """The control: the same call straight to the SuperLink, which no hospital can reach, is answered."""
    federation = long_run.federation
    got = 0
    deadline = time.monotonic() + 60
    authority = str(federation.coordinator / "ca.crt")
    with httpx.Client(base_url=f"https://127.0.0.1:{federation.ports[1]}", verify=authority, trust_env=False, timeout=30) as http:
        attacker = FleetAttacker(http, federation.node_key(SECOND), federation.node_id(SECOND))
        while not got and time.monotonic() < deadline:
            for object_id in foreign_objects(federation):
                answer = attacker.pull_object(long_run.flower_run, object_id)
                got += answer.status_code == 200 and parsed(PullObjectResponse, answer).object_available
    assert got, "Flower has closed this hole: the gateway's check may be simplified"


def test_who_has_not_approved_gets_no_message_and_no_run(long_run: LongRun) -> None:
    federation = long_run.federation
    with federation.attacker(GUEST, GUEST) as attacker:
        assert attacker.activate().status_code == 200
        for _ in range(20):
            assert not parsed(PullMessagesResponse, attacker.pull_messages()).messages_list
            time.sleep(0.1)
        refused = attacker.get_run(long_run.flower_run)
        assert (refused.status_code, refused.json()["code"]) == (403, "RUN_NOT_APPROVED")
        assert attacker.deactivate().status_code == 200
    assert GUEST not in {row["site"] for row in federation.outcomes(long_run.run_id)}


def test_nobody_pushes_into_a_run_without_being_asked(long_run: LongRun) -> None:
    with long_run.federation.attacker(GUEST, GUEST) as attacker:
        refused = attacker.push_object(long_run.flower_run, "0" * 64, b"x" * 100, "somebody's session")
        assert refused.status_code in (400, 403)
        assert attacker.confirm(long_run.flower_run, "0" * 64).status_code in (400, 403)
    long_run.goes_on()


def test_no_secret_is_on_any_command_line(long_run: LongRun) -> None:
    """Every process of server and sites, while a ServerApp runs: no key, token, passphrase, and nothing that looks like one."""
    federation = long_run.federation
    assert federation.server is not None
    roots = [federation.server.pid, *(process.pid for process in federation.sites.values())]
    lines = [" ".join(process.cmdline()) for root in roots for process in tree(root)]
    assert any("common.flower_compat.serverapp" in line for line in lines), "there is no ServerApp to look at"
    assert not any("--token " in line for line in lines)
    for secret in secrets_of(federation):
        assert not [line for line in lines if secret in line]


def tree(root: int) -> list[psutil.Process]:
    return [psutil.Process(root), *psutil.Process(root).children(recursive=True)]


def secrets_of(federation: Federation) -> list[str]:
    """Every secret that lies in a file, as text and as hexadecimal."""
    homes = [federation.coordinator, *(hospital.home for hospital in federation.hospitals.values())]
    names = ("*.key", "*.secret", "*.pem", "tokens/*")
    contents = [path.read_bytes() for home in homes for name in names for path in home.glob(name) if path.is_file()]
    contents.append(federation.passphrase.read_bytes().strip())
    texts = [content.decode("latin-1").strip() for content in contents] + [content.hex() for content in contents]
    return [text for text in texts if len(text) >= 16]


@pytest.mark.slow
def test_ten_thousand_malformed_and_oversized_requests(long_run: LongRun) -> None:
    federation = long_run.federation
    dice = random.Random(7)
    with federation.attacker(GUEST, GUEST) as attacker, federation.client() as stranger, ThreadPoolExecutor(8) as pool:
        assert attacker.activate().status_code == 200
        rubbish = [request_of(dice) for _ in range(REQUESTS)]
        answers = list(pool.map(lambda one: fire(one, attacker, stranger, long_run.flower_run), rubbish))
    counted = Counter(answers)
    assert not [status for status in counted if status == 0 or status >= 500 or 200 <= status < 300], counted
    assert federation.is_up()
    long_run.goes_on()


@dataclass(frozen=True)
class Rubbish:
    """One bad request: which path, what body, with or without a certificate."""

    path: str
    body: bytes
    known: bool


def request_of(dice: random.Random) -> Rubbish:
    """Random bytes, cut messages, wrong paths, and now and then something far too large."""
    calls = (
        "pull-object",
        "push-object",
        "get-run",
        "push-messages",
        "confirm-message-received",
        "get-fab",
        "register-node",
        "../control/start-run",
    )
    own = ("approvals", "enrol", "renew", "nothing", "%2e%2e/health", "studies")
    path = f"/v1/fleet/{dice.choice(calls)}" if dice.random() < 0.7 else f"/v1/wardround/{dice.choice(own)}"
    size = 9 * MIB if dice.random() < 0.005 else dice.choice((0, 1, 10, 1000, 20_000))
    return Rubbish(path, dice.randbytes(min(size, 1000)) * max(1, size // 1000), dice.random() < 0.9)


def fire(one: Rubbish, attacker: FleetAttacker, stranger: httpx.Client, run: int) -> int:
    """Status of the answer; -1 when the connection was closed, which is an answer too."""
    try:
        if one.known:
            return attacker.raw(one.path, one.body).status_code
        return stranger.post(one.path, content=one.body).status_code
    except httpx.TransportError:
        return -1
