# SPDX-License-Identifier: Apache-2.0
"""A hospital is revoked: it is out at once on the connections that it holds, also in the middle of a round; the run goes on without it."""

import json
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import psutil
import pytest

from simulations.loopback import wait_for_end
from simulations.processes import Background, wait_until
from tests.common.flower_compat.attacker import asked_from
from tests.support.federation import HONEST, Federation

LEAVING = "leaving"
TIME = "/v1/wardround/time"
REFUSED = (401, "CERTIFICATE_REFUSED")
ROUNDS = 12
SOON_SECONDS = 300.0
MOST_LATE = 20
"""Tenths of a second between the end of the command and the first refusal."""


def test_a_revoked_site_is_out_on_the_connection_that_it_holds(federation: Federation) -> None:
    federation.add("leaver")
    with federation.attacker("leaver", "leaver") as attacker, federation.client(federation.card("leaver")) as http:
        assert attacker.activate().status_code == 200
        assert code(revoked(federation, "leaver", http)) == REFUSED
        assert {code(answer) for answer in (attacker.heartbeat(), attacker.pull_messages())} == {REFUSED}


def revoked(federation: Federation, name: str, http: httpx.Client) -> httpx.Response:
    """The first answer that is not "welcome" on one connection of a site, kept busy while the site is revoked."""
    answer, port = asked_from(http, TIME)
    assert answer.status_code == httpx.codes.OK
    revoking, late = federation.on_server_in_background("sites", "revoke", name), 0
    while answer.status_code == httpx.codes.OK and late < MOST_LATE:
        assert revoking.code in (None, 0), revoking.said
        late += revoking.code == 0
        time.sleep(0.1)
        answer, same_port = asked_from(http, TIME)
        assert same_port == port, "the test has to stay on one connection"
    assert revoking.finished(60) == 0
    return answer


def code(response: httpx.Response) -> tuple[int, str]:
    """Status and code of an answer."""
    return response.status_code, str(response.json().get("code"))


@pytest.fixture
def leaving(federation: Federation) -> Iterator[Background]:
    """The daemon of a third hospital."""
    hospital = federation.add(LEAVING)
    federation.start_site(hospital, federation.words()[LEAVING])
    yield federation.sites[LEAVING]
    assert federation.stop_site(LEAVING) == 0


@pytest.mark.slow
def test_a_site_that_is_revoked_while_it_trains(federation: Federation, leaving: Background) -> None:
    changes = {"federation.min_sites": 2, "federation.rounds": ROUNDS, "federation.round_timeout_seconds": 2 * SOON_SECONDS}
    study = federation.study("revoked", **changes)
    run = federation.begin(study, (*HONEST, LEAVING))
    run_id = str(federation.rows("SELECT run_id FROM offer WHERE study_id = ?", study.id)[0]["run_id"])
    wait_until(lambda: answered(federation, run_id), f"{LEAVING} has answered a round", 300, run)
    with training_held(leaving), federation.client(federation.card(LEAVING)) as http:
        wait_until(lambda: at_work(federation) is not None, "a round is in hand", 120, run)
        lost = at_work(federation)
        assert code(revoked(federation, LEAVING, http)) == REFUSED
        said = wait_for_end(run, 300)
    assert lost is not None and LEAVING in said
    check_rounds(federation, run_id, lost)
    wait_until(lambda: "revoked" in str(state(federation)["last_error"]), "the daemon says why", 60, leaving)
    assert any(str(line.get("path")).startswith("/v1/fleet/") for line in refusals(federation))
    wait_until(lambda: charges(federation, lost), "the training process, free again, charges what it was asked for", 60, leaving)
    assert len(charges(federation, lost)) == 1


def charges(federation: Federation, round_number: int) -> set[str]:
    """What the site that leaves has charged for a round, each named once."""
    keys = [row["key"] for row in federation.ledger_rows(LEAVING) if "key" in row]
    return {json.dumps(key) for key in keys if key["round"] == round_number}


def answered(federation: Federation, run_id: str) -> bool:
    """Whether the third hospital has given an update in a round that is done."""
    store = federation.coordinator / "runs" / run_id / "rounds.sqlite"
    return store.exists() and any((row["site"], row["outcome"]) == (LEAVING, "update") for row in federation.outcomes(run_id))


@contextmanager
def training_held(daemon: Background) -> Iterator[None]:
    """Stop the clock of the training process, so that the next round stays in hand for as long as the test needs."""
    workers = psutil.Process(daemon.pid).children(recursive=True)
    assert workers
    for worker in workers:
        worker.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGCONT)


def state(federation: Federation) -> dict[str, Any]:
    """What the daemon of the third hospital says that it does."""
    return dict(json.loads((federation.hospitals[LEAVING].home / "daemon.json").read_text(encoding="utf-8")))


def at_work(federation: Federation) -> int | None:
    """The round that it trains."""
    now = state(federation)
    return None if now["stage"] != "working" or now["round"] is None else int(now["round"])


def refusals(federation: Federation) -> list[dict[str, Any]]:
    """What the gateway refused to it after the revocation."""
    card = federation.rows("SELECT fingerprint FROM site_certificate WHERE site = ?", LEAVING)[0]["fingerprint"]
    return [line for line in federation.access_log() if line.get("code") == "CERTIFICATE_REFUSED" and line["certificate"] == card[:16]]


def check_rounds(federation: Federation, run_id: str, lost: int) -> None:
    """Every round counts with the two others; the third is named in the round that it lost, and sent nothing in the later ones."""
    by_round: dict[int, dict[str, str]] = {}
    rows = federation.outcomes(run_id)
    for row in rows:
        by_round.setdefault(int(row["round"]), {})[str(row["site"])] = str(row["outcome"])
    assert sorted(by_round) == list(range(1, ROUNDS + 1))
    assert all(outcomes[site] == "update" for outcomes in by_round.values() for site in HONEST)
    assert by_round[lost][LEAVING] == "NO_REPLY"
    assert all(row["seconds"] < SOON_SECONDS for row in rows if row["site"] == LEAVING), "nobody waits a whole round for who cannot answer"
    details = federation.store_rows(run_id, "SELECT * FROM details WHERE kind = 'train'")
    later = [row for row in details if row["site"] == LEAVING and row["round"] > lost]
    assert len(later) == ROUNDS - lost
    assert {(row["outcome"], row["reason"], row["bytes_down"]) for row in later} == {("NO_REPLY", "it may not take part: revoked", 0)}
