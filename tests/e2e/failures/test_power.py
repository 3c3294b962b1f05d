# SPDX-License-Identifier: Apache-2.0
"""The power fails at a hospital: everything that was not synced is gone, by a shim. A real power cut is not tested."""

from pathlib import Path
from random import Random

import psutil
import pytest

from client.commands import ledger
from tests.support.failures import Recorder
from tests.support.faults import kill_daemon, restart_site, running
from tests.support.federation import HONEST, Federation
from tests.support.power_cut import PowerCut
from tests.support.sightings import daemon_said, round_done, run_event
from tests.support.wholeness import Charged, Slot, charges_of

SITE = HONEST[0]
WHEN = {"training": "in training", "sent": "just after an update was sent"}
OTHER_DISKS = 20
"""How many other ways in which the disk may have lost only a part are looked at."""


def _settled(charged: dict[Slot, Charged], last: int) -> dict[int, tuple[int, int]]:
    """Charges and updates that left, by round up to `last`: what nobody was just writing when the power failed."""
    return {number: (one.charges, len(one.left)) for (_, number), one in charged.items() if number <= last}


@pytest.mark.slow
@pytest.mark.parametrize("moment", WHEN)
def test_power_cut(federation: Federation, recorder: Recorder, tmp_path: Path, moment: str) -> None:
    home = federation.hospitals[SITE].home
    with running(federation, f"power-{moment}", rounds=6) as run:
        run.wait_for_rounds(1)
        federation.stop_site(SITE)
        power = PowerCut(home, tmp_path / "power")
        restart_site(federation, SITE, power.environment)
        trained = run.wait_for_training(SITE)
        if moment == "sent":
            run.wait_for_rounds(trained)
        done = (
            f"SIGKILL to all processes of {SITE} ({WHEN[moment]}); then its folder "
            "is built anew from what was synced, everything else is dropped; the daemon is started again"
        )
        with recorder.fault(f"power cut at a site ({WHEN[moment]})", done, federation) as incident:
            incident.struck()
            family = psutil.Process(federation.sites[SITE].pid).children(recursive=True)
            kill_daemon(federation, SITE)
            assert not psutil.wait_procs(family, 30)[1]
            before = _settled(charges_of(federation, SITE, run.run_id), trained)
            power.strike()
            assert "logs/daemon.log" in power.lost, "nothing was lost: this was no power cut"
            assert _settled(charges_of(federation, SITE, run.run_id), trained) == before
            assert before[trained] == (1, 0 if moment == "training" else 1)
            for seed in range(OTHER_DISKS):
                ledger.verify(power.copy(tmp_path / f"disk-{seed}", Random(seed)))
            restart_site(federation, SITE)
            incident.site_saw(daemon_said(federation, SITE, "online"))
            incident.coordinator_saw(run_event(federation, run.run_id, "site_away", site=SITE))
            incident.recovered(round_done(federation, run.run_id, updates=2))
            incident.is_whole(run.finish())
