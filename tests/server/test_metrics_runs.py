# SPDX-License-Identifier: Apache-2.0
"""What the events of a run come to: phases computed by hand, a process that died, how it ended."""

import json
from pathlib import Path
from typing import Any

from common.json_tail import JsonTail
from server.metrics_runs import RunHistory


def history(path: Path, *events: tuple[float, str, dict[str, Any]]) -> RunHistory:
    with path.open("a") as file:
        for time, name, facts in events:
            file.write(json.dumps({"event": name, "time": time, **facts}) + "\n")
    found = RunHistory(JsonTail(path))
    found.refresh()
    return found


ROUND_1 = [
    (100.0, "run_started", {"resumed_from": 0}),
    (103.0, "round_started", {"round": 1, "sites": ["a", "b"]}),
    (110.0, "site_replied", {"round": 1, "site": "a", "seconds": 7.0}),
    (115.0, "site_refused", {"round": 1, "site": "b", "code": "PAUSED", "reason": ""}),
    (116.5, "round_done", {"round": 1, "updates": 1, "seconds": 13.5}),
]
END = [
    (117.0, "site_evaluated", {"round": 2, "site": "a"}),
    (119.0, "site_refused", {"round": 2, "site": "b", "code": "NO_REPLY", "reason": ""}),
    (119.5, "measured", {"round": 2, "sites": 1}),
    (119.6, "rounds_finished", {"round": 2}),
    (120.0, "run_ended", {"how": "finished", "reason": ""}),
]


def test_phases_by_hand(tmp_path: Path) -> None:
    found = history(tmp_path / "events", *ROUND_1, *END)
    assert found.phase_seconds == {"waiting": 3.0, "training": 12.0, "aggregation": 1.5, "evaluation": 3.0}
    assert (found.round, found.round_seconds, found.how) == (1, 13.5, "finished")
    assert found.refusals == {("b", "PAUSED"): 1, ("b", "NO_REPLY"): 1}


def test_a_process_that_died_costs_no_phase_its_time(tmp_path: Path) -> None:
    killed = [*ROUND_1, (117.0, "round_started", {"round": 2, "sites": ["a"]})]
    resumed = [
        (1000.0, "run_resumed", {"automatic": True, "reason": "its process ended"}),
        (1005.0, "run_started", {"resumed_from": 1}),
        (1006.0, "round_started", {"round": 2, "sites": ["a"]}),
        (1008.0, "site_replied", {"round": 2, "site": "a", "seconds": 2.0}),
        (1009.0, "round_done", {"round": 2, "updates": 1, "seconds": 3.0}),
    ]
    found = history(tmp_path / "events", *killed, *resumed)
    assert found.phase_seconds == {"waiting": 3.0 + 0.5 + 1.0, "training": 12.0 + 2.0, "aggregation": 1.5 + 1.0, "evaluation": 0.0}
    assert (found.round, found.resumptions, found.how, found.last_event) == (2, 1, None, 1009.0)


def test_a_failed_run_that_is_resumed_is_active_again(tmp_path: Path) -> None:
    path = tmp_path / "events"
    assert history(path, *ROUND_1, (117.0, "run_ended", {"how": "failed", "reason": "too few"})).how == "failed"
    assert history(path, (500.0, "run_started", {"resumed_from": 1})).how is None
    assert history(path, (501.0, "checkpoint_damaged", {"file": "x"})).damaged_checkpoints == 1


def test_a_clock_that_goes_back_takes_nothing_away(tmp_path: Path) -> None:
    events = [(100.0, "run_started", {}), (90.0, "round_started", {"round": 1}), (95.0, "site_replied", {"round": 1, "site": "a"})]
    assert history(tmp_path / "events", *events).phase_seconds == {"waiting": 0.0, "training": 5.0, "aggregation": 0.0, "evaluation": 0.0}
