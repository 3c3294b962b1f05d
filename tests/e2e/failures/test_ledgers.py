# SPDX-License-Identifier: Apache-2.0
"""The ledger of a hospital says no in the middle of a run, because there is too little left or because it is an old copy of itself."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import yaml

from simulations.loopback import CLIENT
from simulations.processes import run as run_command
from tests.support.failures import Recorder
from tests.support.faults import running
from tests.support.federation import HONEST, Federation
from tests.support.sightings import refused, round_done, site_log_said

SITE = HONEST[0]
STUDY_EPSILON = 2.0
"""What `running` plans."""


def most_epsilon(federation: Federation) -> float:
    settings = yaml.safe_load((federation.hospitals[SITE].home / "site.yaml").read_text(encoding="utf-8"))
    return float(settings["limits"]["epsilon_per_account"])


@pytest.mark.slow
def test_ledger_refuses(federation: Federation, recorder: Recorder) -> None:
    with running(federation, "spent-before", rounds=1, training_seconds=1.0) as earlier:
        earlier.finish()
    cap = most_epsilon(federation)
    with running(federation, "ledger-refuses", rounds=8) as run:
        refused_round = run.wait_for_training(SITE) + 1
        done = (
            f"hospital IT of {SITE} lowers limits.epsilon_per_account in a run to what the study alone plans; the same patients have paid "
            "for another study before. Raised again once the coordinator has noticed"
        )
        with recorder.fault("ledger refuses", done, federation) as incident:
            incident.struck()
            federation.change_settings(SITE, "limits", epsilon_per_account=STUDY_EPSILON)
            incident.site_saw(site_log_said(federation, SITE, "BUDGET_EXHAUSTED"))
            incident.coordinator_saw(refused(federation, run.run_id, SITE, "BUDGET_EXHAUSTED"))
            incident.healed()
            federation.change_settings(SITE, "limits", epsilon_per_account=cap)
            incident.recovered(round_done(federation, run.run_id, updates=2))
            whole = run.finish()
            incident.is_whole(whole)
        assert whole.missed[0] == f"{SITE} in round {refused_round} (BUDGET_EXHAUSTED)"
        assert whole.unused == (), "a round that was refused was charged"


def copied(ledger: Path, to: Path) -> Path:
    """A whole copy of the ledger as it is now, as a backup makes it."""
    with closing(sqlite3.connect(ledger)) as source, closing(sqlite3.connect(to)) as target:
        source.backup(target)
    return to


@pytest.mark.slow
def test_ledger_restored_from_an_old_backup(federation: Federation, recorder: Recorder, tmp_path: Path) -> None:
    hospital = federation.hospitals[SITE]
    ledger = hospital.home / "ledger.sqlite"
    with running(federation, "ledger-old", rounds=14) as run:
        run.wait_for_rounds(1)
        old = copied(ledger, tmp_path / "backup.sqlite")
        run.wait_for_training(SITE, after_round=2)
        done = (
            f"the daemon of {SITE} is stopped, its ledger.sqlite replaced by a copy from before the last rounds, the daemon started; then "
            "`wardround-client ledger recover`"
        )
        with recorder.fault("ledger restored from an old backup", done, federation) as incident:
            federation.stop_site(SITE)
            ledger.write_bytes(old.read_bytes())
            incident.struck()
            federation.start_site(hospital)
            incident.site_saw(site_log_said(federation, SITE, "LEDGER_BEHIND"))
            incident.coordinator_saw(refused(federation, run.run_id, SITE, "LEDGER_BEHIND"))
            incident.healed()
            run_command(CLIENT, "ledger", "recover", hospital.home)
            incident.recovered(round_done(federation, run.run_id, updates=2))
            whole = run.finish()
            incident.is_whole(whole)
        assert any("LEDGER_BEHIND" in missed for missed in whole.missed)
        assert any(row.get("state") == "recovered" for row in federation.ledger_rows(SITE)), "nothing was charged again"
