# SPDX-License-Identifier: Apache-2.0
"""`readmit` takes a suspended site back; `runs` shows who is suspended and what to do."""

import json
from pathlib import Path

from common.errors import ExitCode
from server.runs import STRIKES, RunStore
from tests.server.gateway.coordinator import Coordinator
from tests.server.offering import offered
from tests.server.up import on_server
from tests.support.studies import small


def test_a_suspended_site_is_shown_and_readmitted(tmp_path: Path) -> None:
    coordinator = Coordinator.make(tmp_path)
    run_id = offered(coordinator, small(), ("north", "south")).run_id
    _, nobody = on_server(coordinator, "readmit", "last", "north", expect=ExitCode.BAD_INPUT)
    assert "suspended are: none" in nobody
    coordinator.home.run(run_id).mkdir(parents=True)
    store = RunStore(coordinator.home.run(run_id) / "rounds.sqlite")
    for number in range(1, STRIKES + 1):
        store.strike(run_id, number, "north", f"round {number}: not finite")

    shown = json.loads(on_server(coordinator, "runs", "--json")[0])["runs"][0]
    assert shown["suspended"] == {"north": [f"round {number}: not finite" for number in range(1, STRIKES + 1)]}
    assert f"wardround-server readmit {run_id[:8]} north" in on_server(coordinator, "status")[0]
    _, another = on_server(coordinator, "readmit", run_id[:8], "south", expect=ExitCode.BAD_INPUT)
    assert "south: not suspended" in another
    assert "suspended are: north" in another

    _, said = on_server(coordinator, "readmit", run_id[:8], "north")
    assert "north takes part again" in said
    assert store.suspended(run_id) == {}
