# SPDX-License-Identifier: Apache-2.0
import json
import threading
from pathlib import Path

import pytest

from common.errors import StorageError
from common.events import Event, EventLog, read_events


def test_events_are_read_as_they_were_emitted(tmp_path: Path) -> None:
    heard: list[Event] = []
    log = EventLog(tmp_path / "e.jsonl", (heard.append,))
    log.emit("round_started", round=1, sites=["north", "süd"])
    log.emit("warning", text="a\nb")
    log.close()
    found = list(read_events(tmp_path / "e.jsonl"))
    assert [(event.name, event.facts) for event in found] == [(event.name, event.facts) for event in heard]
    assert found[0].facts == {"round": 1, "sites": ["north", "süd"]}
    assert found[0].time == pytest.approx(heard[0].time, abs=0.001)


def test_a_line_is_in_the_file_before_listeners_hear_of_it(tmp_path: Path) -> None:
    path, seen = tmp_path / "e.jsonl", []
    log = EventLog(path, (lambda event: seen.append(path.read_text(encoding="utf-8")),))
    log.emit("a", n=1)
    log.close()
    assert json.loads(seen[0])["event"] == "a"


def test_without_a_file_listeners_still_hear() -> None:
    heard: list[Event] = []
    log = EventLog(None, (heard.append,))
    log.emit("a")
    log.close()
    log.emit("b")
    assert [event.name for event in heard] == ["a", "b"]


def test_no_file_means_no_events(tmp_path: Path) -> None:
    assert list(read_events(tmp_path / "none.jsonl")) == []


def test_a_torn_last_line_is_left_out_and_does_not_spoil_the_next(tmp_path: Path) -> None:
    path = tmp_path / "e.jsonl"
    log = EventLog(path)
    log.emit("whole")
    log.close()
    with path.open("a", encoding="utf-8") as file:
        file.write('{"event": "torn", "ti')
    assert [event.name for event in read_events(path)] == ["whole"]
    again = EventLog(path)
    again.emit("next")
    again.close()
    assert [event.name for event in read_events(path)] == ["whole", "next"]


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "e.jsonl")
    threads = [threading.Thread(target=lambda: [log.emit("e", text="x" * 5000) for _ in range(50)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()
    assert len(list(read_events(tmp_path / "e.jsonl"))) == 400


def test_a_full_disk_is_said() -> None:
    log = EventLog(Path("/dev/full"))
    with pytest.raises(StorageError, match="No space left"):
        log.emit("a", text="x")
    with pytest.raises(StorageError, match="No space left"):
        log.close()
    log.close()


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot open"):
        EventLog(tmp_path / "none" / "e.jsonl")
