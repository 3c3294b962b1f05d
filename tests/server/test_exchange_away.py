# SPDX-License-Identifier: Apache-2.0
"""Sites that train for long, lose their connection, or never come back; on Flower's own link state, whose clock the test turns."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import Message

from common.protocol import Instruction, Refusal, RefusalCode, Update
from server.exchange import AWAY_SECONDS, MOST_ASKS, Answer, Watch, every_node, exchange, wait_for_nodes
from tests.common.flower_compat.link_grid import STEP_SECONDS, LinkGrid

HOUR = 3600.0
PATIENCE = 60.0
INSTRUCTION = Instruction("a" * 32, "{}", 3, True, False, {"w": np.ones(4, np.float32)})


class Hospitals:
    """Sites that work `work` seconds on a message and beat their hearts, but not in the seconds `cut`, when nothing of theirs arrives.

    A site answers that its daemon has ended as often as `interrupted` says, before it answers with an update.
    """

    def __init__(
        self, work: dict[str, float], cut: dict[str, tuple[float, float]] | None = None, interrupted: dict[str, int] | None = None
    ) -> None:
        self.work, self.cut, self.interrupted = work, cut or {}, interrupted or {}
        self.in_hand: dict[str, list[tuple[float, Message]]] = {name: [] for name in work}
        self.sent: list[tuple[str, bool]] = []

    def act(self, grid: LinkGrid) -> None:
        now = grid.clock.seconds
        for name in self.work:
            start, end = self.cut.get(name, (0.0, 0.0))
            if start <= now < end:
                continue
            if now % 30 < STEP_SECONDS or now - end < STEP_SECONDS:
                grid.beat(name)
            self.in_hand[name] += [(now + self.work[name], message) for message in grid.take(name)]
            for due in [due for due in self.in_hand[name] if due[0] <= now]:
                self.in_hand[name].remove(due)
                self.sent.append((name, grid.reply(due[1], self._answer(name).to_records())))
                self.work[name] = 0.0  # the stored bytes are sent when it is asked again

    def _answer(self, name: str) -> Refusal | Update:
        left = self.interrupted.get(name, 0)
        self.interrupted[name] = left - 1
        return Refusal(RefusalCode.INTERRUPTED, name) if left > 0 else Update("a" * 32, 3, name, {"w": np.full(4, len(name), np.float32)})


def ask(
    hospitals: Hospitals, patch: pytest.MonkeyPatch, timeout_seconds: float, may_return: Callable[[str], bool] = lambda _: True
) -> tuple[dict[str, Answer], list[tuple[float, str, str]], LinkGrid]:
    grid = LinkGrid(hospitals.work, hospitals.act, patch)
    heard: list[tuple[float, str, str]] = []

    def note(name: str) -> Callable[[str], None]:
        return lambda site: heard.append((grid.clock.seconds, name, site))

    watch = Watch(every_node, may_return, note("site_away"), note("site_interrupted"), note("site_asked_again"))
    nodes = wait_for_nodes(grid, len(hospitals.work), len(hospitals.work), 60.0)  # type: ignore[arg-type]
    answers = list(exchange(grid, nodes, INSTRUCTION, timeout_seconds, watch=watch))  # type: ignore[arg-type]
    assert len(answers) == len({answer.site for answer in answers}) == len(hospitals.work)
    return {answer.site: answer for answer in answers}, heard, grid


def test_an_hour_of_training_is_never_taken_for_death(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, heard, grid = ask(Hospitals({"quick": 10.0, "slow": 3 * HOUR}), monkeypatch, 4 * HOUR)
    assert all(isinstance(answer.reply, Update) for answer in answers.values())
    assert answers["slow"].seconds == pytest.approx(3 * HOUR, abs=3 * STEP_SECONDS)
    assert (heard, len(grid.pushed)) == ([], 2)


def test_a_site_that_never_comes_back_is_named_and_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, heard, grid = ask(Hospitals({"north": 10.0, "dead": 40.0}, {"dead": (20.0, 10 * HOUR)}), monkeypatch, 4 * HOUR)
    assert isinstance(answers["north"].reply, Update)
    assert answers["dead"].reply == Refusal(RefusalCode.NO_REPLY, "dead")
    assert answers["dead"].reason.startswith("no heartbeat")
    assert [(name, site) for _, name, site in heard] == [("site_away", "dead")]
    assert heard[0][0] <= 20 + PATIENCE + 2 * STEP_SECONDS
    assert grid.clock.seconds <= heard[0][0] + AWAY_SECONDS + 2 * STEP_SECONDS


def test_a_site_that_was_cut_off_longer_than_flowers_patience_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its message is gone; what it sends for that is not taken. Asked again, it sends what it has stored."""
    hospitals = Hospitals({"north": 10.0, "cut-off": 100.0}, {"cut-off": (30.0, 30 + PATIENCE + 20)})
    answers, heard, grid = ask(hospitals, monkeypatch, 4 * HOUR)
    assert all(isinstance(answer.reply, Update) for answer in answers.values())
    assert [(name, site) for _, name, site in heard] == [("site_away", "cut-off"), ("site_asked_again", "cut-off")]
    assert [site for _, site in grid.pushed] == ["cut-off", "north", "cut-off"]
    assert ("cut-off", False) in hospitals.sent


def test_while_another_site_trains_one_that_is_away_has_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    hospitals = Hospitals({"slow": 2 * HOUR, "away": 50.0}, {"away": (10.0, HOUR)})
    answers, _, grid = ask(hospitals, monkeypatch, 4 * HOUR)
    assert all(isinstance(answer.reply, Update) for answer in answers.values())
    assert grid.clock.seconds <= 2 * HOUR + 5 * STEP_SECONDS


def test_all_sites_are_back_a_little_later_than_the_link_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an outage of the SuperLink: it hears the server first, and knows of no heartbeat of the last minute."""
    outage = (5.0, 5 + PATIENCE + 15)
    answers, heard, _ = ask(Hospitals({"a": 20.0, "b": 300.0}, {"a": outage, "b": outage}), monkeypatch, HOUR)
    assert all(isinstance(answer.reply, Update) for answer in answers.values())
    assert sorted(site for _, name, site in heard if name == "site_asked_again") == ["a", "b"]


def test_a_revoked_site_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hospitals = Hospitals({"north": 10.0, "revoked": 200.0})
    act = hospitals.act

    def revoke(grid: LinkGrid) -> None:
        act(grid)
        if grid.clock.seconds == 50.0:
            grid.leave("revoked")

    hospitals.act = revoke  # type: ignore[method-assign]
    answers, _, grid = ask(hospitals, monkeypatch, HOUR, may_return=lambda site: site != "revoked")
    assert answers["revoked"].reply == Refusal(RefusalCode.NO_REPLY, "revoked")
    assert grid.clock.seconds <= 50 + 3 * STEP_SECONDS


def test_no_answer_in_time_is_another_reason_than_no_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, heard, grid = ask(Hospitals({"north": 10.0, "slow": 2 * HOUR}), monkeypatch, HOUR)
    assert answers["slow"].reply == Refusal(RefusalCode.NO_REPLY, "slow")
    assert answers["slow"].reason == "no answer in time: nothing came within 3600 s"
    assert (heard, grid.clock.seconds <= HOUR + 2 * STEP_SECONDS) == ([], True)


def test_a_connection_that_comes_and_goes_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    hospitals = Hospitals({"north": HOUR, "flaky": 1000.0})
    act = hospitals.act

    def flicker(grid: LinkGrid) -> None:
        hospitals.cut["flaky"] = (0.0, HOUR) if grid.clock.seconds % 150 >= 30 else (0.0, 0.0)
        act(grid)

    hospitals.act = flicker  # type: ignore[method-assign]
    answers, _, grid = ask(hospitals, monkeypatch, 4 * HOUR)
    assert [site for _, site in grid.pushed].count("flaky") == MOST_ASKS
    assert (answers["flaky"].reply, answers["flaky"].reason) == (Refusal(RefusalCode.NO_REPLY, "flaky"), "no heartbeat")


def test_a_node_that_was_taken_away_before_the_message_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    hospitals = Hospitals({"gone": 10.0, "left": 10.0, "north": 10.0})
    grid = LinkGrid(hospitals.work, hospitals.act, monkeypatch)
    nodes = wait_for_nodes(grid, 3, 3, 60.0)  # type: ignore[arg-type]
    grid.leave("gone")
    grid.leave("left")
    answers = {answer.site: answer for answer in exchange(grid, nodes, INSTRUCTION, HOUR)}  # type: ignore[arg-type]
    assert isinstance(answers["north"].reply, Update)
    assert {answers[site].reason for site in ("gone", "left")} == {"not connected: its message could not be sent"}
    assert grid.clock.seconds <= 30.0


def test_a_site_whose_daemon_ended_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says so when it is back; it has stored its update, or trains under the charge that it has."""
    answers, heard, grid = ask(Hospitals({"north": 40.0, "restarted": 20.0}, interrupted={"restarted": 1}), monkeypatch, HOUR)
    assert all(isinstance(answer.reply, Update) for answer in answers.values())
    assert [(name, site) for _, name, site in heard] == [("site_interrupted", "restarted"), ("site_asked_again", "restarted")]
    assert [site for _, site in grid.pushed] == ["north", "restarted", "restarted"]
    assert grid.clock.seconds <= 40 + 2 * STEP_SECONDS


def test_a_site_that_stops_for_good_is_not_waited_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says that it was stopped in training, and beats no heart any more."""
    hospitals = Hospitals({"north": 10.0, "stopped": 10.0}, {"stopped": (20.0, 10 * HOUR)}, {"stopped": 1})
    answers, heard, grid = ask(hospitals, monkeypatch, HOUR)
    assert isinstance(answers["north"].reply, Update)
    assert answers["stopped"].reply == Refusal(RefusalCode.NO_REPLY, "stopped")
    assert heard[0][1:] == ("site_interrupted", "stopped")
    assert grid.clock.seconds <= 20 + PATIENCE + AWAY_SECONDS + 4 * STEP_SECONDS


def test_a_site_whose_daemon_ends_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, heard, grid = ask(Hospitals({"north": 10.0, "broken": 1.0}, interrupted={"broken": 100}), monkeypatch, HOUR)
    assert isinstance(answers["north"].reply, Update)
    assert answers["broken"].reply == Refusal(RefusalCode.INTERRUPTED, "broken")
    assert [site for _, site in grid.pushed].count("broken") == MOST_ASKS
    assert sum(name == "site_interrupted" for _, name, _ in heard) == MOST_ASKS - 1
