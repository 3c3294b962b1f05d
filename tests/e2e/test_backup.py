# SPDX-License-Identifier: Apache-2.0
"""A hospital's machine is lost, then the coordinator's: each comes back out of its backup, through the real commands."""

from pathlib import Path
from typing import Any

import pytest

from common.study import Study
from simulations.loopback import CLIENT, SERVER, Hospital
from simulations.processes import run
from tests.support.federation import HONEST, Federation, start_federation

SITE = HONEST[0]
ROUNDS = 2


def study(federation: Federation, number: int) -> Study:
    return federation.study(f"study-{number}", **{"federation.rounds": ROUNDS, "seed": number})


def ledger(hospital: Hospital, command: str, expect: int = 0) -> Any:
    done = run(CLIENT, "ledger", command, hospital.home, "--json", expect=expect)
    return done.json if expect == 0 else done.err


def charged(federation: Federation, study_id: str) -> dict[int, str]:
    """The newest state of each charge of a study at the site, by round."""
    rows = [row for row in federation.ledger_rows(SITE) if row["kind"] == "ChargeEntry" and row["key"]["study_id"] == study_id]
    return {row["key"]["round"]: row["state"] for row in rows}


def lose_and_restore_the_site(federation: Federation, file: Path) -> None:
    hospital = federation.hospitals[SITE]
    assert federation.stop_site(SITE) == 0
    hospital.home.rename(hospital.home.with_name("lost"))
    run(CLIENT, "restore", file, hospital.home, "--passphrase-file", federation.passphrase)


@pytest.mark.slow
def test_lost_machines_come_back(tmp_path: Path) -> None:
    federation = start_federation(tmp_path, guests=())
    try:
        hospital, file = federation.hospitals[SITE], tmp_path / "site.backup"
        federation.train(study(federation, 1))
        federation.at(hospital, "backup", file, "--passphrase-file", federation.passphrase)
        second = study(federation, 2)
        federation.train(second)
        rows_before = len(federation.ledger_rows(SITE))

        lose_and_restore_the_site(federation, file)
        assert charged(federation, second.id) == {} and len(federation.ledger_rows(SITE)) < rows_before
        assert "LEDGER_BEHIND" in ledger(hospital, "verify", expect=3)
        federation.start_site(hospital)
        third = study(federation, 3)
        started = federation.offer(_written(federation, third), HONEST)
        federation.wait_for_offer(hospital, third.id, started)
        refused = federation.at(hospital, "approve", third.id, "--cohort", "chest", "--by", "a test", "--yes", expect=3)
        assert "LEDGER_BEHIND" in refused.err

        done = ledger(hospital, "recover")
        assert (done["receipts"], done["charges"], done["left"], done["asked"]) == (1, ROUNDS, 0, True), done
        assert charged(federation, second.id) == dict.fromkeys(range(1, ROUNDS + 1), "recovered")
        for name in HONEST:
            federation.approve(federation.hospitals[name], third.id)
        assert started.finished(300) == 0, started.said
        assert set(charged(federation, third.id)) == {1, 2}
        assert federation.at(hospital, "egress", "--verify", expect=6)
        federation.at(hospital, "egress", "--explain", "the machine was lost and restored")

        lose_and_restore_the_coordinator(federation, tmp_path / "server.backup")
        fourth = study(federation, 4)
        federation.train(fourth)
        assert set(charged(federation, fourth.id)) == {1, 2}
    finally:
        codes = federation.stop()
    assert set(codes.values()) <= {0}


def _written(federation: Federation, one: Study) -> Path:
    from tests.support.studies import write_study

    return write_study(one, federation.folder)


def lose_and_restore_the_coordinator(federation: Federation, file: Path) -> None:
    """Backed up while it runs; the daemons stay where they are and find it again."""
    federation.on_server("backup", file, "--passphrase-file", federation.passphrase)
    assert federation.server is not None and federation.server.stop() == 0
    federation.coordinator.rename(federation.coordinator.with_name("lost-coordinator"))
    run(SERVER, "restore", file, federation.coordinator, "--passphrase-file", federation.passphrase)
    federation.up()
