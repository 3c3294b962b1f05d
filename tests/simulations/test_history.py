# SPDX-License-Identifier: Apache-2.0
import json
import tracemalloc
from pathlib import Path

import pytest

from client.journal import RoundEntry
from client.site import journal_path
from simulations.history import read_history
from simulations.layout import RunLayout


def line(round_number: int, loss: float | None, run_id: str = "run", epsilon: float | None = None) -> str:
    entry = RoundEntry(
        run_id=run_id, round=round_number, steps=4, loss=loss, non_finite=0, epsilon=epsilon, seconds=2.0, device=f"cpu-{round_number}"
    )
    return entry.model_dump_json() + "\n"


def events(*facts: dict) -> str:
    return "".join(json.dumps(fact) + "\n" for fact in facts)


def write_run(folder: Path, journals: dict[str, str], happened: str) -> RunLayout:
    layout = RunLayout(folder)
    for name, text in journals.items():
        layout.site(name).mkdir(parents=True)
        journal_path(layout.site(name)).write_text(text, encoding="utf-8")
    layout.events.write_text(happened, encoding="utf-8")
    return layout


def test_the_last_word_of_a_round_counts_and_other_runs_do_not(tmp_path: Path) -> None:
    journal = line(1, 0.9, epsilon=0.1) + line(1, 0.5, "other") + line(2, 0.8, epsilon=0.2) + line(2, None)
    layout = write_run(tmp_path, {"north": journal, "south": ""}, "")
    history = read_history(layout, ["north", "south"], "run")
    north, south = history.sites["north"], history.sites["south"]
    assert (north.loss, north.epsilon, north.rounds) == ({1: 0.9}, {1: 0.1}, {1, 2})
    assert (north.steps, north.seconds, north.mean_step_seconds) == (12, 6.0, 0.5)
    assert (south.rounds, south.mean_step_seconds, history.device) == (set(), None, "cpu-1")


def test_rounds_and_refusals_come_from_the_events(tmp_path: Path) -> None:
    refused = {"event": "site_refused", "time": 4.0, "round": 1, "site": "north", "code": "NO_REPLY"}
    happened = events(
        {"event": "run_started", "time": 0.0},
        refused,
        {**refused, "site": "stranger"},
        {"event": "round_done", "time": 5.0, "round": 1, "seconds": 9.0},
        {"event": "run_started", "time": 100.0},
        {**refused, "time": 101.0},
        {"event": "round_done", "time": 103.0, "round": 1, "seconds": 2.5},
    )
    history = read_history(write_run(tmp_path, {"north": ""}, happened), ["north"], "run")
    assert history.seconds == 8.0, "the pause between the two starts does not count"
    assert history.round_seconds == {1: 2.5}, "a round that was repeated took what it took the last time"
    assert history.sites["north"].refusals == {"NO_REPLY": 2}


def peak_bytes(folder: Path, rounds: int, names: list[str]) -> int:
    replied = [{"event": "site_replied", "time": 1.0, "round": n, "site": name, "seconds": 1.0} for n in range(rounds) for name in names]
    journal = "".join(line(number, 0.5, epsilon=0.1) for number in range(rounds))
    layout = write_run(folder, dict.fromkeys(names, journal), events(*replied))
    del replied
    read_history(layout, names, "run")
    tracemalloc.start()
    history = read_history(layout, names, "run")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(history.sites[names[0]].loss) == rounds
    return peak


@pytest.mark.parametrize("sites", [30])
def test_memory_of_reading_is_a_few_bytes_for_each_site_and_round(tmp_path: Path, sites: int) -> None:
    """The lines themselves take some 700 bytes each as objects; what is kept of them is two numbers."""
    names = [f"site-{number}" for number in range(sites)]
    short, long = peak_bytes(tmp_path / "short", 10, names), peak_bytes(tmp_path / "long", 110, names)
    assert (long - short) / (100 * sites) < 400
