# SPDX-License-Identifier: Apache-2.0
"""A hospital whose software is hostile or broken sends what it must not; its own door is open, so the coordinator has to see it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from simulations.processes import Background
from tests.support.failures import Recorder
from tests.support.faults import restart_site, running, wait_online
from tests.support.federation import HONEST, Federation
from tests.support.rogue_daemon import BENDS, DOOR, REPLAY
from tests.support.sightings import daemon_said, refused, round_done, site_log_said

ROGUE = HONEST[1]
ROOT = Path(__file__).resolve().parents[3]
WHY = {
    "NaN": "not finite",
    "wrong shape": "shape",
    "wrong dtype": "float64, expected float32",
    "1e30": "L2 norm",
    "extra array": "tensor extra was not asked for",
    "missing array": "is missing",
    REPLAY: "not to round",
}
FAULTS = {
    "1e30": "an update of values of 1e30",
    "extra array": "an update with an array too many",
    "missing array": "an update with an array too few",
    REPLAY: "an update replayed from an earlier round",
}


@pytest.fixture
def orders(federation: Federation) -> Iterator[Path]:
    """The site's daemon with software that does what this file says, until the end of the test."""
    orders = federation.folder / "orders"
    orders.write_text("", encoding="utf-8")
    log = federation.hospitals[ROGUE].home / "logs" / "daemon.log"
    before = log.read_text(encoding="utf-8").count('"online"')
    federation.stop_site(ROGUE)
    command = [sys.executable, "-m", "server.leashed", "tests.support.rogue_daemon", str(federation.hospitals[ROGUE].home), str(orders)]
    output = federation.folder / "output" / "rogue.log"
    federation.sites[ROGUE] = Background(command, output, folder=ROOT, leash=federation.leash)
    wait_online(federation, ROGUE, before + 1)
    yield orders
    restart_site(federation, ROGUE)


@contextmanager
def ordered(orders: Path, word: str) -> Iterator[None]:
    """The site behaves so as long as the block lasts."""
    orders.write_text(word, encoding="utf-8")
    try:
        yield
    finally:
        orders.write_text("", encoding="utf-8")


def test_every_way_of_cheating_has_its_reason() -> None:
    assert set(WHY) == {*BENDS, REPLAY}


@pytest.mark.slow
@pytest.mark.parametrize("bend", WHY)
def test_bad_update(federation: Federation, orders: Path, recorder: Recorder, bend: str) -> None:
    with running(federation, f"bad-{'-'.join(bend.lower().split())}", training_seconds=2.0) as run:
        trained = run.wait_for_training(ROGUE)
        done = f"the software of {ROGUE} changes its update in one round ({bend}) and signs it; its own door lets it pass"
        with recorder.fault(FAULTS.get(bend, f"an update with {bend}"), done, federation) as incident:
            incident.struck()
            with ordered(orders, bend):
                incident.coordinator_saw(refused(federation, run.run_id, ROGUE, "REPLY_INVALID", WHY[bend]))
            incident.healed()
            incident.recovered(round_done(federation, run.run_id, updates=2))
            whole = run.finish()
            incident.is_whole(whole)
        assert whole.missed[0] == f"{ROGUE} in round {trained} (REPLY_INVALID)"
        assert len(whole.missed) < run.rounds - 1, "it was not let in again"


@pytest.mark.slow
def test_bad_update_stopped_at_the_door(federation: Federation, orders: Path, recorder: Recorder) -> None:
    with running(federation, "bad-at-the-door", training_seconds=2.0) as run:
        trained = run.wait_for_training(ROGUE)
        done = f"the training process of {ROGUE} answers NaN in one round; the site's own door is as it should be"
        with recorder.fault("an update with NaN, stopped by the site's own door", done, federation) as incident:
            incident.struck()
            with ordered(orders, f"{DOOR}NaN"):
                incident.site_saw(site_log_said(federation, ROGUE, "may not leave"))
                incident.coordinator_saw(refused(federation, run.run_id, ROGUE, "TRAINING_FAILED"))
            incident.healed()
            incident.recovered(round_done(federation, run.run_id, updates=2))
            whole = run.finish()
            incident.is_whole(whole)
        assert whole.missed[0] == f"{ROGUE} in round {trained} (TRAINING_FAILED)"
        assert daemon_said(federation, ROGUE, "message answered", answer="TRAINING_FAILED", round=str(trained))(0.0) is not None
