# SPDX-License-Identifier: Apache-2.0
"""Processes of the coordinator that die in the middle of a round. Nobody does anything afterwards but what the row says."""

import time

import pytest

from simulations.processes import wait_until
from tests.support.failures import Recorder
from tests.support.faults import held, is_gone, kill, running, server_app, server_child
from tests.support.federation import HONEST, Federation
from tests.support.sightings import daemon_said, events_of, round_done, run_event, up_said

SITE = HONEST[0]
LONG_OUTAGE_SECONDS = 75.0
"""More than the minute after which Flower gives a ServerApp up."""
HELD = "The supervisor, which would start it again after half a second, was stopped (SIGSTOP) for that time"


@pytest.mark.slow
def test_gateway_killed(federation: Federation, recorder: Recorder) -> None:
    assert federation.server is not None
    with running(federation, "gateway-killed") as run:
        trained = run.wait_for_training(SITE)
        done = f"SIGKILL to the gateway in a round; away until {SITE} has trained and cannot send. {HELD}"
        with recorder.fault("gateway killed and restarted", done, federation) as incident:
            incident.struck()
            with held(federation.server.pid):
                kill(server_child(federation, "gateway"))
                incident.site_saw(daemon_said(federation, SITE, "coordinator", error="cannot be reached"))
                run.wait_for_stuck_reply(SITE, trained)
                incident.healed()
            incident.coordinator_saw(up_said(federation, "gateway: ended with code -9"))
            incident.recovered(round_done(federation, run.run_id, updates=2))
            whole = run.finish()
            incident.is_whole(whole)
        assert whole.missed == ()


@pytest.mark.slow
def test_superlink_killed_short_outage(federation: Federation, recorder: Recorder) -> None:
    assert federation.server is not None
    with running(federation, "superlink-killed") as run:
        run.wait_for_training(SITE)
        done = f"SIGKILL to the SuperLink in a round; away until {SITE} has noticed. {HELD}"
        with recorder.fault("SuperLink killed in a round, short outage", done, federation) as incident:
            incident.struck()
            with held(federation.server.pid):
                kill(server_child(federation, "superlink"))
                incident.site_saw(daemon_said(federation, SITE, "coordinator unreachable"))
                incident.healed()
            incident.coordinator_saw(up_said(federation, "superlink: ended with code -9"))
            incident.recovered(round_done(federation, run.run_id, updates=2))
            whole = run.finish()
            incident.is_whole(whole)
        assert whole.missed == ()


@pytest.mark.slow
def test_superlink_killed_long_outage(federation: Federation, recorder: Recorder) -> None:
    assert federation.server is not None
    with running(federation, "superlink-away") as run:
        run.wait_for_training(SITE)
        done = f"SIGKILL to the SuperLink in a round; away for {LONG_OUTAGE_SECONDS:.0f} s, more than Flower's patience of a minute. {HELD}"
        with recorder.fault("SuperLink killed in a round, long outage", done, federation) as incident:
            incident.struck()
            with held(federation.server.pid):
                kill(server_child(federation, "superlink"))
                incident.site_saw(daemon_said(federation, SITE, "coordinator unreachable"))
                time.sleep(max(0.0, incident.began + LONG_OUTAGE_SECONDS - time.time()))
                incident.healed()
            incident.coordinator_saw(run_event(federation, run.run_id, "run_resumed", automatic=True))
            incident.recovered(round_done(federation, run.run_id, updates=2))
            incident.is_whole(run.finish())


@pytest.mark.slow
def test_server_app_killed(federation: Federation, recorder: Recorder) -> None:
    with running(federation, "server-app-killed") as run:
        trained = run.wait_for_training(SITE)
        done = "SIGKILL to the ServerApp in a round; the executor starts the run again"
        with recorder.fault("ServerApp killed", done, federation) as incident:
            incident.struck()
            kill(server_app(federation))
            incident.coordinator_saw(run_event(federation, run.run_id, "run_resumed", automatic=True))
            incident.site_saw(daemon_said(federation, SITE, "message answered", round=str(trained)))
            incident.recovered(round_done(federation, run.run_id, updates=2))
            incident.is_whole(run.finish())
        assert finished_once(federation, run.run_id)


@pytest.mark.slow
def test_executor_killed(federation: Federation, recorder: Recorder) -> None:
    with running(federation, "executor-killed") as run:
        trained = run.wait_for_training(SITE)
        app = server_app(federation)
        done = "SIGKILL to the executor (SuperExec) in a round; the supervisor starts it again; it finds the ServerApp or starts one"
        with recorder.fault("SuperExec (our executor) killed", done, federation) as incident:
            incident.struck()
            kill(server_child(federation, "executor"))
            incident.coordinator_saw(up_said(federation, "executor: ended with code -9"))
            incident.site_saw(daemon_said(federation, SITE, "message answered", round=str(trained)))
            incident.recovered(round_done(federation, run.run_id, updates=2))
            incident.is_whole(run.finish())
        assert finished_once(federation, run.run_id)
        wait_until(lambda: is_gone(app), "the ServerApp of the executor that died has ended", 60)


@pytest.mark.slow
def test_whole_coordinator_killed(federation: Federation, recorder: Recorder) -> None:
    assert federation.server is not None
    with running(federation, "up-killed") as run:
        run.wait_for_training(SITE)
        children = [server_child(federation, name) for name in ("superlink", "executor", "gateway")]
        done = "SIGKILL to `up` in a round: all of its processes end; `up` is started again as soon as a site has noticed"
        with recorder.fault("the whole coordinator killed", done, federation) as incident:
            incident.struck()
            kill(federation.server.pid)
            federation.server.finished(10)
            incident.site_saw(daemon_said(federation, SITE, "coordinator", error="cannot be reached"))
            incident.healed()
            federation.up()
            assert all(is_gone(one) for one in children), "a child has survived `up`"
            incident.coordinator_saw(run_event(federation, run.run_id, "run_resumed", automatic=True))
            incident.recovered(round_done(federation, run.run_id, updates=2))
            incident.is_whole(run.finish())
        assert finished_once(federation, run.run_id)


def finished_once(federation: Federation, run_id: str) -> bool:
    """Whether a run that went on after a kill has ended once, however often it began."""
    return sum(event.name == "rounds_finished" for event in events_of(federation, run_id)) == 1
