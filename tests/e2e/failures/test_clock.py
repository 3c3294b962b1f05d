# SPDX-License-Identifier: Apache-2.0
"""The clock of a hospital goes wrong in the middle of a round, and is put right."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.failures import Recorder
from tests.support.faults import ENOUGH_ROUNDS, restart_site, running
from tests.support.federation import HONEST, Federation
from tests.support.sightings import Look, daemon_said, first_of, refused, round_done
from tests.support.skewed_clock import SkewedClock

SITE = HONEST[1]
HOUR = 3600.0


@pytest.fixture
def clock(federation: Federation, tmp_path: Path) -> Iterator[SkewedClock]:
    """The clock of the site, which is right."""
    clock = SkewedClock(tmp_path / "clock")
    restart_site(federation, SITE, clock.environment)
    yield clock
    restart_site(federation, SITE)


def clock_doubted(federation: Federation, ahead_seconds: float) -> Look:
    """The gateway refuses signatures of another time; on a new connection to a young server its certificate is not valid yet."""
    refusal = daemon_said(federation, SITE, "not accepted by the coordinator", ahead_seconds=ahead_seconds, error="clock")
    return first_of(refusal, daemon_said(federation, SITE, "coordinator unreachable", ahead_seconds=ahead_seconds, error="clock"))


@pytest.mark.slow
@pytest.mark.parametrize(("way", "seconds"), [("ahead", HOUR), ("behind", -HOUR)], ids=["ahead", "behind"])
def test_clock_skew(federation: Federation, clock: SkewedClock, recorder: Recorder, way: str, seconds: float) -> None:
    with running(federation, f"clock-{way}", rounds=ENOUGH_ROUNDS) as run:
        run.wait_for_training(SITE)
        done = f"the clock of {SITE}'s daemon jumps an hour {way} in a round, until the coordinator has given the site up"
        with recorder.fault(f"clock skew at a site (an hour {way})", done, federation) as incident:
            incident.struck()
            clock.set(seconds)
            incident.coordinator_saw(refused(federation, run.run_id, SITE, "NO_REPLY"))
            incident.site_saw(clock_doubted(federation, seconds))
            incident.healed()
            clock.set(0.0)
            incident.recovered(round_done(federation, run.run_id, updates=2))
            whole = run.finish()
            incident.is_whole(whole)
        assert all(missed.startswith(SITE) and missed.endswith("(NO_REPLY)") for missed in whole.missed), whole.missed
