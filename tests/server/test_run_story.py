# SPDX-License-Identifier: Apache-2.0
"""A run's own events say whether it has ended; what they do not say counts as an interruption."""

import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from common.errors import FederationError, RefusedError, StorageError
from common.events import Event, EventLog, read_events
from server.cohort import alone
from server.home import ServerHome
from server.run_story import MOST_TRIES, EventTail, Stories, Story, end_of, events_of, its_end_told, note, told

RUN = "ab" * 16
FULL = Path("/dev/full")
AUTOMATIC = {"automatic": True, "reason": "killed"}


def story(*names: str | tuple[str, dict]) -> Story:
    pairs = [(name, {}) if isinstance(name, str) else name for name in names]
    return told(Event(name, 0.0, facts) for name, facts in pairs)


def test_a_run_is_open_until_its_end_is_told() -> None:
    assert story().is_open, "handed over, and nothing heard yet"
    assert story("run_started", "round_started").is_open
    assert not story("run_started", ("run_ended", {"how": "finished"})).is_open
    assert story("run_started", ("run_ended", {"how": "failed", "reason": "too few"})).reason == "too few"
    assert not story("run_started", "round_started", "rounds_finished").is_open, "killed between the last round and its last word"
    stopped = ("run_started", ("run_ended", {"how": "stopped"}))
    assert story(*stopped).how == "stopped"
    assert story(*stopped, ("run_resumed", {"automatic": False})).is_open
    assert story(*stopped, "run_started").is_open


def test_what_an_older_release_left_is_not_touched() -> None:
    assert not story("round_started", "round_done", "round_started").is_open
    assert not story("round_started", "round_done", "rounds_finished").is_open
    assert story("round_started", ("run_resumed", {"automatic": False})).is_open, "somebody wanted it to go on"


def test_tries_count_until_a_round_is_finished_or_somebody_resumes() -> None:
    tries = ["run_started", *[("run_resumed", AUTOMATIC)] * MOST_TRIES]
    assert story(*tries[:-1]).tries < MOST_TRIES
    assert story(*tries).is_open
    assert story(*tries).tries >= MOST_TRIES
    assert story(*tries, "run_started", "round_started").tries == MOST_TRIES, "starting is not getting further"
    assert story(*tries, "run_started", "round_done").tries == 0
    assert story(*tries, ("run_resumed", {"automatic": False})).tries == 0


def test_a_refusal_before_the_first_event_is_a_decision() -> None:
    assert story().never_came_to_work("ServerApp failed with exception: FOREIGN_BUNDLE")
    assert not story().never_came_to_work("No heartbeat received from the task")
    assert not story("run_started").never_came_to_work("ServerApp failed with exception: HTTPStatusError")


def test_the_end_is_told_once_and_only_if_it_was_a_decision(tmp_path: Path) -> None:
    def ends(error: BaseException | None) -> list[object]:
        path = tmp_path / f"{type(error).__name__}.jsonl"
        with closing(EventLog(path)) as events:
            try:
                with its_end_told(events):
                    if error is not None:
                        raise error
            except BaseException as raised:  # noqa: BLE001
                assert raised is error
        return [(event.facts["how"], event.facts["reason"]) for event in read_events(path)]

    assert ends(None) == [("finished", "")]
    assert ends(FederationError("too few sites")) == [("failed", "too few sites")]
    for lost in (SystemExit(1), KeyboardInterrupt(), ConnectionError("the SuperLink is gone")):
        assert ends(lost) == []


@pytest.mark.skipif(not FULL.exists(), reason="needs a device that is always full")
def test_a_full_disk_hides_nothing_of_what_went_wrong_first() -> None:
    events = EventLog(FULL)
    with pytest.raises(StorageError, match="the checkpoint"), its_end_told(events):
        raise StorageError("cannot write the checkpoint")
    with pytest.raises(StorageError, match="the event log"):
        events.close()


def test_nobody_writes_into_the_events_of_a_run_that_is_at_work(tmp_path: Path) -> None:
    home = ServerHome(tmp_path)
    with alone(home.run(RUN)):
        with pytest.raises(RefusedError, match="is still running"):
            note(home, RUN, "run_ended", how="stopped", reason="")
        assert not events_of(home, RUN).exists()
    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        with alone(home.run(RUN)):
            holding.set()
            done.wait(0.5)

    thread = threading.Thread(target=hold)
    thread.start()
    holding.wait()
    started = time.monotonic()
    note(home, RUN, "run_ended", wait_seconds=20, how="stopped", reason="it was waited for")
    assert time.monotonic() - started >= 0.3
    thread.join()
    note(home, RUN, "run_ended", how="failed", reason="a second end")
    assert [event.facts["how"] for event in read_events(events_of(home, RUN))] == ["stopped"]


def test_stories_read_each_line_once_and_whole(tmp_path: Path) -> None:
    home = ServerHome(tmp_path)
    stories, path = Stories(home), events_of(home, RUN)
    assert stories.of(RUN) == Story()
    path.parent.mkdir(parents=True)
    with closing(EventLog(path)) as events:
        events.emit("run_started", resumed_from=0)
    assert stories.of(RUN).is_open
    with path.open("a") as file:
        file.write('{"event": "run_ended", "time": 1, "how"')
    assert stories.of(RUN).is_open, "half a line says nothing"
    with path.open("a") as file:
        file.write(': "finished", "reason": ""}\n')
    assert not stories.of(RUN).is_open
    tail = EventTail(path, end_of(path))
    assert not tail.has_news
    with path.open("a") as file:
        file.write("no JSON\n")
    with pytest.raises(StorageError, match="damaged"):
        list(tail.news())
