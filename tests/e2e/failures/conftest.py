# SPDX-License-Identifier: Apache-2.0
"""One federation for all scenarios that do not damage it for the next, mended before each; and the recorder that makes the page's rows."""

from collections.abc import Iterator

import pytest

from simulations.processes import wait_until
from tests.support.failures import Recorder
from tests.support.faults import restart_site, wait_online
from tests.support.federation import Federation, start_federation


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """Two hospitals that train; a scenario that needs another enrols its own."""
    started = start_federation(tmp_path_factory.mktemp("failures"), guests=())
    for name in started.sites:
        wait_online(started, name)
    yield started
    codes = started.stop()
    assert set(codes.values()) <= {0}, f"a process did not stop cleanly: {codes}"


@pytest.fixture
def federation(shared: Federation) -> Federation:
    """The shared federation with everything running, whatever an earlier scenario that failed has left."""
    if shared.server is None or shared.server.code is not None:
        shared.up()
    wait_until(shared.is_up, "the coordinator is up", 90, shared.server)
    for name in shared.hospitals:
        if name not in shared.sites or shared.sites[name].code is not None:
            restart_site(shared, name)
    return shared


@pytest.fixture
def recorder(request: pytest.FixtureRequest) -> Iterator[Recorder]:
    """What a scenario writes its row with; a test that has it is a scenario, marked slow."""
    assert request.node.get_closest_marker("slow"), "a scenario is marked slow, so that the page's check finds it"
    made = Recorder.from_environment(request.node.name)
    yield made
    assert made.has_begun, "the scenario has recorded no fault"
