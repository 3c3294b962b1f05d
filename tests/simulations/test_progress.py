# SPDX-License-Identifier: Apache-2.0
import io
from typing import Any

from rich.console import Console

from common.events import Event
from simulations.progress import MAX_SITES_SHOWN, NO_PRIVACY, RunView, advance, drawing, show_progress

STARTED: dict[str, Any] = {
    "study_id": "f" * 64,
    "study": "quickstart",
    "run_dir": "runs/x",
    "sites": ["north", "south"],
    "rounds": 4,
    "private": True,
    "epsilon_target": 3.0,
    "noise_multiplier": 1.68,
}


def stream(start: float = 100.0) -> list[Event]:
    return [
        Event("run_started", start, STARTED),
        Event("phase_started", start + 1, {"phase": "federated", "label": "federated training", "total": 4}),
        Event("round_started", start + 1, {"round": 1, "sites": ["north", "south"]}),
        Event("site_trained", start + 5, {"round": 1, "site": "north", "loss": 0.5, "auroc": 0.75, "epsilon": 1.25, "seconds": 4}),
        Event("site_refused", start + 6, {"round": 1, "site": "south", "code": "WORKER_LOST"}),
        Event("round_done", start + 11, {"round": 1, "updates": 1, "seconds": 10, "auroc": 0.8125}),
    ]


def after(events: list[Event]) -> RunView:
    view = RunView()
    for event in events:
        view = advance(view, event)
    return view


def drawn(view: RunView) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(drawing(view))
    return console.file.getvalue()  # type: ignore[attr-defined]


def shown(events: list[Event], **settings: Any) -> str:
    console = Console(file=io.StringIO(), width=120, **settings)
    with show_progress(console) as listener:
        for event in events:
            listener(event)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_view_is_what_the_events_said() -> None:
    view = after(stream())
    assert (view.round, view.rounds, view.auroc) == (1, 4, 0.8125)
    assert (view.sites["north"].loss, view.sites["north"].auroc, view.sites["north"].epsilon) == (0.5, 0.75, 1.25)
    assert view.sites["south"].state == "WORKER_LOST"


def test_time_left_is_the_speed_so_far_times_what_is_left() -> None:
    assert after(stream()).seconds_left == 3 * 10
    assert after(stream()[:3]).seconds_left is None


def test_a_resumed_run_measures_its_own_speed() -> None:
    events = [
        *stream()[:2],
        Event("round_started", 101.0, {"round": 3, "sites": ["north"]}),
        Event("round_done", 103.0, {"round": 3, "updates": 1, "seconds": 2, "auroc": None}),
    ]
    assert after(events).seconds_left == 2


def test_progress_of_other_phases_has_its_own_time_left() -> None:
    phase = Event("phase_started", 200, {"phase": "features", "label": "", "total": 10})
    view = after([*stream(), phase, Event("progress", 204, {"phase": "features", "done": 4, "total": 10})])
    assert view.seconds_left == 6
    assert "computing features  4/10  0:06 left" in drawn(view)


def test_a_new_run_starts_from_nothing() -> None:
    view = after([*stream(), Event("run_started", 300, STARTED | {"sites": ["east"]})])
    assert list(view.sites) == ["east"]
    assert view.auroc is None


def test_the_loose_live_bound_is_never_shown_above_the_target() -> None:
    late = Event("site_trained", 112, {"round": 4, "site": "north", "loss": 0.4, "auroc": None, "epsilon": 3.31})
    assert after([*stream(), late]).sites["north"].epsilon == 3.0


def test_unknown_events_are_ignored() -> None:
    before = drawn(after(stream()))
    assert drawn(after([*stream(), Event("site_sneezed", 111, {"site": "north"})])) == before


def test_the_picture_has_everything() -> None:
    text = drawn(after([*stream(), Event("warning", 111, {"text": "one class only"})]))
    for words in (
        "quickstart",
        "2 sites",
        "ε ≤ 3",
        "1.68",
        "round 1/4",
        "0.812",
        "0:30 left",
        "north",
        "0.750",
        "1.25",
        "WORKER_LOST",
        "one class",
    ):
        assert words in text, words


def test_no_privacy_is_loud() -> None:
    assert NO_PRIVACY in drawn(after([Event("run_started", 0, STARTED | {"private": False})]))
    assert NO_PRIVACY in shown([Event("run_started", 0, STARTED | {"private": False})])
    assert NO_PRIVACY not in drawn(after(stream()))


def test_names_are_never_read_as_markup() -> None:
    events = [Event("run_started", 0, STARTED | {"sites": ["[red]x[/red]", "[/]"]})]
    assert "[red]x[/red]" in drawn(after(events))
    assert "[/] refused" in shown([*events, Event("site_refused", 1, {"round": 1, "site": "[/]", "code": "NOT_READY"})])


def test_many_sites_do_not_fill_the_screen() -> None:
    text = drawn(after([Event("run_started", 0, STARTED | {"sites": [f"site-{n}" for n in range(100)]})]))
    assert f"{100 - MAX_SITES_SHOWN} more sites" in text
    assert len(text.splitlines()) < 24


def test_without_a_terminal_there_is_one_line_a_round() -> None:
    lines = shown(stream()).splitlines()
    assert lines[0] == "quickstart: 2 sites, 4 rounds; patient-level ε ≤ 3 at each site, noise multiplier 1.68"
    assert lines[-1] == "round 1/4  AUROC 0.812  loss 0.500  ε ≤ 1.25  0:30 left"
    assert [line for line in lines if "WORKER_LOST" in line] == ["round 1: south refused with WORKER_LOST"]
    assert "\x1b" not in "".join(lines)


def test_on_a_terminal_it_is_drawn_in_place() -> None:
    text = shown(stream(), force_terminal=True, legacy_windows=False)
    assert "\x1b[" in text
    assert "round 1/4" in text
