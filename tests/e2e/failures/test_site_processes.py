# SPDX-License-Identifier: Apache-2.0
"""Processes of a hospital that die in the middle of a round."""

from collections.abc import Iterator

import pytest

from tests.support.failures import Incident, Recorder
from tests.support.faults import (
    TRAINING_SECONDS,
    Running,
    held,
    kill,
    kill_daemon,
    no_more_memory,
    restart_site,
    running,
    server_child,
    worker,
)
from tests.support.federation import HONEST, Federation
from tests.support.sightings import daemon_said, refused, round_done, run_event, site_log_said
from tests.support.wholeness import Charged, charges_of

SITE = HONEST[0]
NO_RESERVE = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536:glibc.malloc.arena_max=1:glibc.malloc.trim_threshold=65536"}
"""Each tensor of a step is asked of the system anew. Left alone, glibc keeps what earlier rounds took, and that can be enough."""
LARGE_IMAGES = {"data.image_size": 64}
"""A step asks for blocks of some MB: none fits between the small ones that are left."""


@pytest.fixture
def without_reserve(federation: Federation) -> Iterator[None]:
    """A site whose processes hold no memory in reserve."""
    restart_site(federation, SITE, NO_RESERVE)
    yield
    restart_site(federation, SITE)


def asked_again(run: Running, incident: Incident, trained: int) -> Charged:
    """The coordinator hears that the site's daemon has ended, and asks again: no round does without the site, and it is charged once."""
    incident.coordinator_saw(run_event(run.federation, run.run_id, "site_interrupted", round=trained, site=SITE))
    incident.recovered(round_done(run.federation, run.run_id, updates=2))
    whole = run.finish()
    incident.is_whole(whole)
    assert whole.missed == ()
    charged = charges_of(run.federation, SITE, run.run_id)[(run.run_id, trained)]
    assert charged.charges == 1
    return charged


@pytest.mark.slow
def test_node_killed_in_training(federation: Federation, recorder: Recorder) -> None:
    with running(federation, "node-killed") as run:
        trained = run.wait_for_training(SITE)
        done = f"SIGKILL to the daemon of {SITE} while it trains; started again at once"
        with recorder.fault("node killed in training", done, federation) as incident:
            incident.struck()
            kill_daemon(federation, SITE)
            federation.start_site(federation.hospitals[SITE])
            incident.site_saw(daemon_said(federation, SITE, "the daemon before this one ended without stopping"))
            asked_again(run, incident, trained)


@pytest.mark.slow
def test_node_restarted_in_training(federation: Federation, recorder: Recorder) -> None:
    with running(federation, "node-restarted") as run:
        trained = run.wait_for_training(SITE)
        done = f"the daemon of {SITE} is stopped with SIGTERM while it trains, and started again at once, as `systemctl restart` does"
        with recorder.fault("node restarted in training", done, federation) as incident:
            incident.struck()
            restart_site(federation, SITE)
            incident.site_saw(daemon_said(federation, SITE, "message answered", answer="INTERRUPTED"))
            asked_again(run, incident, trained)


@pytest.mark.slow
def test_node_killed_while_it_sends(federation: Federation, recorder: Recorder) -> None:
    with running(federation, "node-killed-sending") as run:
        trained = run.wait_for_training(SITE)
        done = (
            f"SIGKILL to the daemon of {SITE} while its update is on its way; started again at once. "
            "The gateway was stopped (SIGSTOP) from training until the kill, so that the update was surely announced and not whole"
        )
        with recorder.fault("node killed while it sends its update", done, federation) as incident:
            with held(server_child(federation, "gateway")):
                run.wait_for_stuck_reply(SITE, trained)
                incident.struck()
                kill_daemon(federation, SITE)
            left = charges_of(federation, SITE, run.run_id)[(run.run_id, trained)].left
            federation.start_site(federation.hospitals[SITE])
            incident.site_saw(daemon_said(federation, SITE, "message answered", answer="INTERRUPTED"))
            assert asked_again(run, incident, trained).left == left and len(left) == 1, "it sends what it has stored"


@pytest.mark.slow
def test_training_process_killed(federation: Federation, recorder: Recorder) -> None:
    with running(federation, "worker-killed") as run:
        trained = run.wait_for_training(SITE)
        done = f"SIGKILL to the training process of {SITE}, as the kernel does when memory runs out"
        with recorder.fault("worker out of memory (killed)", done, federation) as incident:
            incident.struck()
            kill(worker(federation, SITE))
            incident.site_saw(daemon_said(federation, SITE, "message answered", answer="TRAINING_FAILED"))
            incident.coordinator_saw(refused(federation, run.run_id, SITE, "TRAINING_FAILED"))
            incident.recovered(round_done(federation, run.run_id, updates=2))
            whole = run.finish()
            incident.is_whole(whole)
        assert whole.missed == (f"{SITE} in round {trained} (TRAINING_FAILED)",)


@pytest.mark.slow
@pytest.mark.usefixtures("without_reserve")
def test_training_process_gets_no_memory(federation: Federation, recorder: Recorder) -> None:
    with running(federation, "worker-limited", training_seconds=TRAINING_SECONDS / 3, **LARGE_IMAGES) as run:
        trained = run.wait_for_training(SITE)
        done = f"the training process of {SITE} gets no more memory from the system (RLIMIT_AS) until its round has failed"
        with recorder.fault("worker out of memory (refused by the system)", done, federation) as incident:
            incident.struck()
            with no_more_memory(worker(federation, SITE)):
                incident.coordinator_saw(refused(federation, run.run_id, SITE, "TRAINING_FAILED"))
            incident.healed()
            incident.site_saw(site_log_said(federation, SITE, "TRAINING_FAILED"))
            incident.recovered(round_done(federation, run.run_id, updates=2))
            whole = run.finish()
            incident.is_whole(whole)
        assert whole.missed == (f"{SITE} in round {trained} (TRAINING_FAILED)",)
