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
from tests.support.rubbish import rubbish
from tests.support.studies import write_study

FIRST, SECOND = HONEST
REQUESTS = 10_000


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
                assert code(answer) == (403, "NOT_ADDRESSED")
                seen.add(object_id)
    assert len(seen) >= 20, "the test never saw an object of the other site"
    long_run.goes_on()


FOREIGN = """
WITH RECURSIVE reply(object_id) AS (
    SELECT message_id FROM message_res UNION SELECT child_id FROM object_children JOIN reply ON parent_id = object_id
)
SELECT object_id FROM objects WHERE object_id IN reply OR object_id IN (SELECT message_id FROM message_ins WHERE dst_node_id = ?)
"""
"""A message's other parts may be parts of one to the second site too, now or in a moment."""


def foreign_objects(federation: Federation) -> set[str]:
    """Ids of objects in Flower's store that will never be addressed to the second site: of replies, and messages to the first."""
    return {row["object_id"] for row in federation.superlink_rows(FOREIGN, signed(federation.node_id(FIRST)))}


def signed(node_id: int) -> int:
    """As SQLite keeps it."""
    return node_id - (1 << 64) if node_id >= 1 << 63 else node_id


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
    federation, before = long_run.federation, long_run.rounds()
    with federation.attacker(GUEST, GUEST) as attacker:
        assert attacker.activate().status_code == 200
        wait_until(lambda: nothing_for(attacker) and long_run.rounds() >= before + 3, "rounds that began after it came", 120)
        refused = attacker.get_run(long_run.flower_run)
        assert (refused.status_code, refused.json()["code"]) == (403, "RUN_NOT_APPROVED")
        assert attacker.deactivate().status_code == 200
    assert GUEST not in {row["site"] for row in federation.outcomes(long_run.run_id)}


def nothing_for(attacker: FleetAttacker) -> bool:
    """That there is no message for it."""
    assert not parsed(PullMessagesResponse, attacker.pull_messages()).messages_list
    return True


def test_nobody_pushes_into_a_run_without_being_asked(long_run: LongRun) -> None:
    """Not the guest, who has not approved the run; and not a hospital that has, in the name of its neighbour."""
    federation, run = long_run.federation, long_run.flower_run
    with federation.attacker(GUEST, GUEST) as attacker:
        answers = (
            attacker.push_object(run, "0" * 64, b"x" * 100, "a session"),
            attacker.confirm(run, "0" * 64),
            attacker.push_messages(run),
        )
        assert {code(answer) for answer in answers} == {(403, "RUN_NOT_APPROVED")}
    with federation.attacker(SECOND, SECOND) as attacker:
        for session in ("", "somebody's session", *sessions_of(federation, FIRST)):
            assert code(attacker.push_object(run, "0" * 64, b"x" * 100, session)) == (403, "NOT_YOUR_SESSION")
    long_run.goes_on()


def test_nobody_answers_or_deletes_the_message_of_another(long_run: LongRun) -> None:
    """Confirming a message deletes it at Flower, and whoever answers first has answered: only the site that it was delivered to may."""
    federation, run = long_run.federation, long_run.flower_run
    seen: set[str] = set()
    deadline = time.monotonic() + 60
    with federation.attacker(SECOND, SECOND) as attacker:
        while len(seen) < 3 and time.monotonic() < deadline:
            for message_id in messages_of(federation, FIRST, run) - seen:
                answers = (attacker.push_messages(run, reply_to=message_id), attacker.confirm(run, message_id))
                assert {code(answer) for answer in answers} == {(403, "NOT_ADDRESSED")}
                seen.add(message_id)
    assert len(seen) >= 3, "the test never saw a message to the other site"
    long_run.goes_on()


def sessions_of(federation: Federation, site: str) -> list[str]:
    """Ids of the sessions that replies of a site have opened."""
    return [str(row["session_id"]) for row in federation.rows("SELECT session_id FROM push_session WHERE site = ?", site)]


def messages_of(federation: Federation, site: str, flower_run: int) -> set[str]:
    """Ids of messages that were delivered to a site in a run."""
    query = "SELECT message_id FROM addressed WHERE site = ? AND flower_run_id = ?"
    return {str(row["message_id"]) for row in federation.rows(query, site, str(flower_run))}


def code(response: httpx.Response) -> tuple[int, str]:
    """Status and code of a refusal."""
    return response.status_code, str(response.json()["code"])


def test_no_secret_is_on_any_command_line(long_run: LongRun) -> None:
    """Every process of server and sites, while a ServerApp runs: no key, token, passphrase, and nothing that looks like one."""
    federation = long_run.federation
    assert federation.server is not None
    roots = [federation.server.pid, *(process.pid for process in federation.sites.values())]
    lines = [" ".join(process.cmdline()) for root in roots for process in tree(root)]
    assert any("common.flower_compat.serverapp" in line for line in lines), "there is no ServerApp to look at"
    tokens = [str(row["token"]) for row in federation.superlink_rows("SELECT token FROM task WHERE token IS NOT NULL")]
    assert tokens, "Flower keeps its tokens elsewhere now: look for them there"
    for secret in (*secrets_of(federation), *tokens):
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
    federation, dice = long_run.federation, random.Random(7)
    sent = [rubbish(dice) for _ in range(REQUESTS)]
    with federation.attacker(GUEST, GUEST) as attacker, federation.client() as stranger, ThreadPoolExecutor(8) as pool:
        assert attacker.activate().status_code == 200
        answers = list(pool.map(lambda one: one.fire(attacker, stranger), sent))
    wrong = Counter(
        (one.path, len(one.body), one.known, answer) for one, answer in zip(sent, answers, strict=True) if answer not in one.right
    )
    assert not wrong
    assert 429 in answers, "strangers were never slowed down"
    assert {"BODY_TOO_LARGE", "MALFORMED"} <= {line.get("code") for line in federation.access_log()}
    assert federation.is_up()
    long_run.goes_on()
