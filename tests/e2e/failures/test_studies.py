# SPDX-License-Identifier: Apache-2.0
"""Two studies at once, a hospital that is thrown out, and one that takes its time: no fault, and nobody may take it for one."""

import json
import time

import pytest

from tests.support.failures import Recorder
from tests.support.faults import running
from tests.support.federation import HONEST, Federation
from tests.support.sightings import daemon_said, refused, round_done, run_event, site_state, status_says

SITE = HONEST[0]
PATIENCE_SECONDS = 60.0
"""After so long without a heartbeat Flower takes a node for dead."""


@pytest.mark.slow
def test_two_studies_at_once(federation: Federation, recorder: Recorder) -> None:
    with running(federation, "one-of-two") as one:
        one.wait_for_training(SITE, after_round=0)
        done = "a second study is offered, approved and run at the same two sites while the first is in its first rounds"
        with recorder.fault("two studies at once on one site", done, federation) as incident, running(federation, "two-of-two") as two:
            incident.site_saw(daemon_said(federation, SITE, "message answered", run=two.run_id[:12], answer="update"))
            incident.coordinator_saw(status_says(federation, "two-of-two", "run, study, status, rounds: "))
            incident.recovered(round_done(federation, two.run_id, updates=2))
            wholes = one.finish(), two.finish()
            incident.is_whole(wholes[1])
            incident.remark = "No fault: seconds are counted from the offer of the second study"
        assert [whole.missed for whole in wholes] == [(), ()]


@pytest.mark.slow
def test_certificate_revoked(federation: Federation, recorder: Recorder) -> None:
    guest = "gamma"
    hospital = federation.add(guest)
    federation.start_site(hospital, federation.words()[guest])
    with running(federation, "revoked", rounds=6, sites=(*HONEST, guest)) as run:
        trained = run.wait_for_training(guest)
        done = f"`wardround-server sites revoke` for a third hospital, {guest}, while it trains"
        with recorder.fault("certificate revoked in a run", done, federation) as incident:
            incident.struck()
            federation.on_server("sites", "revoke", guest)
            incident.site_saw(daemon_said(federation, guest, "coordinator", error="revoked"))
            incident.coordinator_saw(refused(federation, run.run_id, guest, "NO_REPLY"))
            incident.recovered(round_done(federation, run.run_id, updates=2))
            whole = run.finish()
            incident.is_whole(whole)
        assert f"{guest} in round {trained} (NO_REPLY)" in whole.missed
        assert all(missed.startswith(guest) for missed in whole.missed), whole.missed
        later = federation.store_rows(run.run_id, f"SELECT reason FROM details WHERE site = '{guest}' AND round > {trained + 1}")
        assert {row["reason"] for row in later} == {"it may not take part: revoked"}, "the revoked site was asked again"
    assert federation.stop_site(guest) == 0
    del federation.hospitals[guest]


@pytest.mark.slow
def test_long_training_is_not_taken_for_death(federation: Federation, recorder: Recorder) -> None:
    changes = {"federation.round_timeout_seconds": 1800.0}
    with running(federation, "long-training", rounds=1, sites=(SITE,), training_seconds=2 * PATIENCE_SECONDS, **changes) as run:
        done = f"one round of local training that lasts longer than the {PATIENCE_SECONDS:.0f} s after which Flower gives a silent site up"
        with recorder.fault("long local training is not taken for death", done, federation) as incident:
            run.wait_for_training(SITE, after_round=0)
            incident.site_saw(site_state(federation, SITE, "working"))
            time.sleep(PATIENCE_SECONDS)
            incident.coordinator_saw(status_says(federation, f"{SITE} approved yes", "site, status, connected: "))
            incident.remark = "No fault: seconds are counted from the start of the run, and the site was connected all the time"
            incident.recovered(run_event(federation, run.run_id, "site_replied", site=SITE), 1200)
            whole = run.finish()
            incident.is_whole(whole)
        assert whole.missed == ()
        entry = json.loads((federation.hospitals[SITE].home / "rounds.jsonl").read_text(encoding="utf-8").splitlines()[-1])
        assert entry["run_id"] == run.run_id
        assert entry["seconds"] > PATIENCE_SECONDS, "this machine was too fast: the training was not long"
