# SPDX-License-Identifier: Apache-2.0
"""No space left: at a hospital, and at the coordinator, in the middle of a round. Somebody makes room, and that is all that is done."""

import time
from collections.abc import Iterator

import pytest

from simulations.processes import wait_until
from tests.support.failures import Recorder
from tests.support.faults import restart_site, running
from tests.support.federation import HONEST, Federation
from tests.support.sightings import disk_full_said, refused, round_done, site_saw_full_disk
from tests.support.small_disk import SmallDisk, on_a_small_disk

SITE = HONEST[0]
FULL_SECONDS = 10.0


@pytest.fixture
def site_disk(federation: Federation) -> Iterator[SmallDisk]:
    """The folder of the site on a disk of its own; its daemon runs."""
    federation.stop_site(SITE)
    with on_a_small_disk(federation.hospitals[SITE].home) as disk:
        restart_site(federation, SITE)
        yield disk
        federation.stop_site(SITE)
    restart_site(federation, SITE)


@pytest.fixture
def server_disk(federation: Federation) -> Iterator[SmallDisk]:
    """The coordinator's folder on a disk of its own; it is up."""
    assert federation.server is not None
    federation.server.stop()
    with on_a_small_disk(federation.coordinator) as disk:
        federation.up()
        yield disk
        assert federation.server is not None
        federation.server.stop(60)
    federation.up()


@pytest.mark.slow
def test_disk_full_at_the_site(federation: Federation, site_disk: SmallDisk, recorder: Recorder) -> None:
    with running(federation, "site-disk-full", rounds=6) as run:
        run.wait_for_training(SITE)
        done = f"the file system of {SITE}'s folder is filled to the last block while it trains, until the coordinator has noticed"
        with recorder.fault("site's disk full", done, federation) as incident:
            incident.struck()
            site_disk.fill()
            incident.site_saw(site_saw_full_disk(federation, SITE))
            incident.coordinator_saw(refused(federation, run.run_id, SITE, "TRAINING_FAILED"))
            incident.healed()
            site_disk.free()
            incident.recovered(round_done(federation, run.run_id, updates=2))
            whole = run.finish()
            incident.is_whole(whole)
        assert whole.missed and all(missed.startswith(SITE) for missed in whole.missed)


@pytest.mark.slow
def test_disk_full_at_the_coordinator(federation: Federation, server_disk: SmallDisk, recorder: Recorder) -> None:
    assert federation.server is not None
    with running(federation, "server-disk-full") as run:
        run.wait_for_training(SITE)
        done = (
            f"the file system of the coordinator's folder is filled to the last block in a round, {FULL_SECONDS:.0f} s and until it says so"
        )
        with recorder.fault("server's disk full", done, federation) as incident:
            incident.struck()
            server_disk.fill()
            incident.coordinator_saw(disk_full_said(federation))
            time.sleep(max(0.0, incident.began + FULL_SECONDS - time.time()))
            incident.healed()
            server_disk.free()
            wait_until(federation.is_up, "the coordinator is up", 120, federation.server)
            incident.recovered(round_done(federation, run.run_id, updates=2))
            incident.is_whole(run.finish())
