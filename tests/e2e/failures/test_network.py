# SPDX-License-Identifier: Apache-2.0
"""The line between a hospital and the coordinator is cut in the middle of a round, and heals."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import yaml

from tests.support.failures import Recorder
from tests.support.faults import ENOUGH_ROUNDS, restart_site, running
from tests.support.federation import HONEST, Federation
from tests.support.forwarder import Forwarder
from tests.support.sightings import daemon_said, refused, round_done

SITE = HONEST[1]


@contextmanager
def behind_a_line(federation: Federation) -> Iterator[Forwarder]:
    """The site reaches the coordinator over a line that can be cut. Its daemon is started anew before and after."""
    path = federation.hospitals[SITE].home / "site.yaml"
    before = path.read_text(encoding="utf-8")
    with Forwarder(federation.ports[0]) as line:
        path.write_text(
            yaml.safe_dump({**yaml.safe_load(before), "coordinator": f"https://127.0.0.1:{line.port}"}, sort_keys=False), encoding="utf-8"
        )
        try:
            restart_site(federation, SITE)
            assert line.connections, "the site does not go over the line"
            yield line
        finally:
            path.write_text(before, encoding="utf-8")
            restart_site(federation, SITE)


@pytest.mark.slow
def test_network_drops_connections(federation: Federation, recorder: Recorder) -> None:
    with behind_a_line(federation) as line, running(federation, "line-dropped") as run:
        trained = run.wait_for_training(SITE)
        done = f"all connections of {SITE} are reset in a round, new ones refused, until the site has trained and cannot send its update"
        with recorder.fault("network cut and healed (connections refused)", done, federation) as incident:
            incident.struck()
            line.drop()
            incident.site_saw(daemon_said(federation, SITE, "coordinator", error="cannot be reached"))
            run.wait_for_stuck_reply(SITE, trained)
            incident.healed()
            line.heal()
            incident.recovered(round_done(federation, run.run_id, updates=2))
            whole = run.finish()
            incident.is_whole(whole)
        assert whole.missed == ()


@pytest.mark.slow
def test_network_stops_forwarding(federation: Federation, recorder: Recorder) -> None:
    with behind_a_line(federation) as line, running(federation, "line-held", rounds=ENOUGH_ROUNDS) as run:
        cut = run.wait_for_training(SITE)
        done = f"nothing of {SITE} is forwarded any more, its connections stay open, until Flower has given the site up after a minute"
        with recorder.fault("network cut and healed (nothing forwarded)", done, federation) as incident:
            incident.struck()
            line.hold()
            incident.coordinator_saw(refused(federation, run.run_id, SITE, "NO_REPLY"))
            incident.site_saw(daemon_said(federation, SITE, "coordinator", error="no answer in time"))
            incident.healed()
            line.heal()
            incident.recovered(round_done(federation, run.run_id, updates=2))
            whole = run.finish()
            incident.is_whole(whole)
        assert f"{SITE} in round {cut} (NO_REPLY)" in whole.missed
