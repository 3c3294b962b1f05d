# SPDX-License-Identifier: Apache-2.0
"""The parts of the soak by hand-made rows and figures, and a short soak for real."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from simulations.processes import Background, wait_until
from tests.bench.soak.books import Slot, Struck, Window, problems, read_charges, unused, updates_that_left
from tests.bench.soak.driving import Options
from tests.bench.soak.schedule import OF_A_SITE, Kill, Target, schedule
from tests.bench.soak.watch import FEWEST_ROUNDS, MARKER, SETTLE_SECONDS, WARM_ROUNDS, WARM_SECONDS, Point, Watch, growth, slope

SITES = ("alpha", "beta")


def row(state: str, run_id: str, round_number: int, reply: str | None = None, kind: str = "ChargeEntry") -> dict[str, object]:
    return {"kind": kind, "state": state, "key": {"run_id": run_id, "round": round_number}, "reply": reply}


def kill_of(target: Target, site: str = "") -> Kill:
    return Kill(1, target, site, 0.0)


def test_the_same_seed_is_the_same_schedule_and_another_is_another() -> None:
    assert schedule(1, 200, 40, SITES) == schedule(1, 200, 40, SITES) != schedule(2, 200, 40, SITES)


@pytest.mark.parametrize("seed", range(20))
def test_kills_are_spread_and_every_kind_has_its_turn(seed: int) -> None:
    found = schedule(seed, 200, 42, SITES)
    rounds = [kill.round for kill in found]
    assert rounds == sorted(set(rounds)) and rounds[0] >= 1 and rounds[-1] <= 200
    assert all(200 * number // 42 < one <= 200 * (number + 1) // 42 for number, one in enumerate(rounds))
    assert {target: sum(kill.target is target for kill in found) for target in Target} == dict.fromkeys(Target, 7)
    assert all((kill.site in SITES) == (kill.target in OF_A_SITE) and 0 <= kill.delay_seconds <= 1 for kill in found)


def test_more_kills_than_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="at most one a round"):
        schedule(1, 3, 4, SITES)


def test_runs_share_the_rounds() -> None:
    assert [Options(rounds=14, runs=4).rounds_of(number) for number in range(4)] == [3, 4, 3, 4]


def test_charges_are_the_keys_reserved_and_not_settled() -> None:
    rows = [
        row("reserved", "r", 1),
        row("releasing", "r", 1, "aa"),
        row("sent", "r", 1, "aa"),
        row("reserved", "r", 2),
        row("settled", "r", 2),
        row("reserved", "r", 2),
        row("reserved", "r", 3),
        row("settled", "r", 3),
        {"kind": "EarmarkEntry"},
    ]
    found = read_charges("alpha", rows)
    assert found.standing == {Slot("alpha", "r", 1): "sent", Slot("alpha", "r", 2): "reserved"}
    assert (found.reserved, found.left, found.doubled) == (4, {Slot("alpha", "r", 1): "aa"}, [])
    assert read_charges("alpha", [*rows, row("reserved", "r", 1)]).doubled == [Slot("alpha", "r", 1)]


def test_every_way_in_which_the_books_of_a_site_may_differ_is_said() -> None:
    charged = read_charges("alpha", [row("reserved", "r", 1), row("sent", "r", 1, "aa"), row("reserved", "r", 2)])
    lines = [{"kind": "update", "run_id": "r", "round": 1, "payload_sha256": "p"}] * 2
    left = updates_that_left("alpha", [*lines, {"kind": "refusal", "run_id": "r", "round": 2, "payload_sha256": "q"}])
    assert left == {Slot("alpha", "r", 1): {"p"}}
    assert problems(charged, left, {Slot("alpha", "r", 1)}) == []
    twice = read_charges("alpha", [row("reserved", "r", 1), row("reserved", "r", 1)])
    assert [text.split(": ")[1] for text in problems(twice, left, set())] == ["charged twice"]
    assert problems(charged, {Slot("alpha", "r", 1): {"p", "q"}}, set()) == ["alpha, run r, round 1: two different updates left"]
    assert problems(charged, {Slot("alpha", "r", 9): {"p"}}, set()) == ["alpha, run r, round 9: an update left that was never charged"]
    assert problems(charged, left, {Slot("alpha", "r", 2)}) == ["alpha, run r, round 2: added up, but no update left"]


def test_a_charge_without_an_update_is_put_down_to_the_kill_in_its_round() -> None:
    charged = read_charges("alpha", [row("reserved", "r", number) for number in (1, 2, 3)])
    struck = [
        Struck(kill_of(Target.GATEWAY), 21.0, "r", 2, 5),
        Struck(kill_of(Target.NODE, "alpha"), 22.0, "r", 2, 6),
        Struck(kill_of(Target.WORKER, "beta"), 31.0, "r", 3, 7),
        Struck(kill_of(Target.WORKER, "alpha"), 35.0, "another", 3, 8),
    ]
    windows = {("r", number): Window(10.0 * number, 10.0 * number + 9) for number in (1, 2, 3)}
    found = unused(charged, {Slot("alpha", "r", 1)}, struck, windows, 0.5)
    assert [(one.slot.round, one.cause) for one in found] == [(2, struck[1]), (3, None)]
    assert unused(charged, {Slot("alpha", "r", 1), Slot("alpha", "r", 3)}, struck[:1], windows, 0.5)[0].cause == struck[0]


def test_a_slope_is_within_each_process_not_between_them() -> None:
    assert slope([[(0, 10), (1, 12), (2, 14)]]) == pytest.approx(2)
    assert slope([[(0, 10), (1, 10)], [(2, 50), (3, 50)]]) == pytest.approx(0)
    assert slope([[(0, 10), (2, 11)], [(2, 50), (4, 51)]]) == pytest.approx(0.5)
    assert slope([[(1, 5), (1, 7)]]) == 0


def test_growth_leaves_out_the_first_seconds_and_rounds_and_says_nothing_about_few() -> None:
    loading = [Point(WARM_SECONDS + number, number, 100.0 + 50 * number, 10) for number in range(int(WARM_ROUNDS))]
    steady = [Point(60.0 + number, WARM_ROUNDS + number, 400 + 0.02 * number, 12 + number) for number in range(int(FEWEST_ROUNDS) + 1)]
    young = [point._replace(age=1.0) for point in steady]
    found = growth({(1, 0.0): [*loading, *steady], (2, 0.0): young})
    assert found is not None
    assert (found.megabytes, found.descriptors) == (pytest.approx(2), pytest.approx(100))
    assert (found.points, found.processes) == (len(steady), 1)
    assert growth({(1, 0.0): [*loading, *steady[:-1]]}) is None


def test_orphans_and_zombies_are_found_and_strangers_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MARKER, "a-test-of-the-soak")
    sleeper = f"{sys.executable} -c 'import time; time.sleep(60)'"
    parent = Background(["/bin/sh", "-c", f"{sleeper} & echo $!; wait"], tmp_path / "log")
    wait_until(lambda: parent.said.endswith("\n"), "the child", 20)
    left = int(parent.said)
    dead = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        watch = Watch("a-test-of-the-soak")
        wait_until(lambda: {left, dead.pid} <= {process.pid for process in watch.ours()}, "both are known", 20)
        watch.sample(0)
        assert (watch.orphans, watch.zombies) == ({}, {})
        assert psutil.Process().pid not in [process.pid for process in watch.ours()]
        os.kill(parent.pid, signal.SIGKILL)
        parent.finished(10)
        dead.kill()
        wait_until(lambda: psutil.Process(dead.pid).status() == psutil.STATUS_ZOMBIE, "a zombie", 10)
        watch.sample(1)
        assert (list(watch.orphans), list(watch.zombies), watch.reported) == ([left], [dead.pid], [])
        watch.orphans[left] -= SETTLE_SECONDS
        watch.sample(2)
        assert [text.split(",")[0] for text in watch.reported] == [f"orphan: process {left}"]
    finally:
        os.kill(left, signal.SIGKILL)
        dead.wait()
        assert dead.stdin is not None
        dead.stdin.close()


@pytest.mark.slow
def test_a_short_soak(tmp_path: Path) -> None:
    from tests.bench.soak.__main__ import soak

    options = replace(Options(), rounds=12, runs=2, kills=6, minutes=10.0)
    found = soak(tmp_path / "soak", options, Console(width=150, force_terminal=False))
    found.show(Console(width=150))
    assert found.problems == []
    assert (found.rounds_done, len(found.struck)) == (12, 6)
    assert {one.kill.target for one in found.struck} == set(Target)
    assert all(site.charged == site.shown and site.left <= site.charged and site.added <= site.left for site in found.sites)
