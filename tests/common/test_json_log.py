# SPDX-License-Identifier: Apache-2.0
"""Logs as JSON lines: ours, other people's, and what run and round a message belongs to."""

import io
import json
import logging
import threading
from typing import Any

import pytest

from common.events import Event
from common.json_log import MAX_LINE_CHARACTERS, RUN_LOG, JsonLines, JsonStream, as_json_line, json_handler, tell_events


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def logger(stream: io.StringIO, **facts: str) -> logging.Logger:
    log = logging.Logger("test")
    log.addHandler(json_handler(stream, **facts))
    return log


def test_a_message_is_one_line_with_its_facts() -> None:
    stream = io.StringIO()
    logger(stream, child="executor").warning("two\nlines of %s", "text", extra={"run": "ab", "round": 3, "site": "north", "secret": "x"})
    (line,) = lines(stream)
    assert line.pop("time") > 1e9
    assert line == {"level": "warning", "message": "two\nlines of text", "child": "executor", "run": "ab", "round": 3, "site": "north"}


def test_a_message_that_does_not_say_belongs_to_the_last_run_and_round() -> None:
    stream = io.StringIO()
    log = logger(stream)
    log.info("before")
    log.info("a round", extra={"run": "ab", "round": 1, "site": "north"})
    log.info("what a library says")
    log.info("the next", extra={"round": 2})
    log.info("again")
    assert [(line.get("run"), line.get("round"), line.get("site")) for line in lines(stream)] == [
        (None, None, None),
        ("ab", 1, "north"),
        ("ab", 1, None),
        ("ab", 2, None),
        ("ab", 2, None),
    ]


def test_an_error_has_its_trace() -> None:
    stream = io.StringIO()
    try:
        raise ValueError("why")
    except ValueError:
        logger(stream).exception("failed")
    (line,) = lines(stream)
    assert line["level"] == "error" and line["trace"].endswith("ValueError: why") and "Traceback" in line["trace"]


@pytest.mark.parametrize(
    ("line", "level", "message"),
    [
        ("\x1b[93mWARNING \x1b[0m:   EXPERIMENTAL", "warning", "WARNING :   EXPERIMENTAL"),
        ("2026-11-22T12:56:33.828Z ERROR [uvicorn.error] x", "error", "2026-11-22T12:56:33.828Z ERROR [uvicorn.error] x"),
        ("a long line that says only far behind its beginning ERROR", "info", "a long line that says only far behind its beginning ERROR"),
        ("{not json", "info", "{not json"),
        ('["a list"]', "info", '["a list"]'),
    ],
)
def test_what_others_print_is_wrapped(line: str, level: str, message: str) -> None:
    assert json.loads(as_json_line(line, 5.0, child="superlink")) == {"time": 5.0, "level": level, "message": message, "child": "superlink"}


def test_what_is_json_already_stays_and_gets_what_it_does_not_say() -> None:
    assert as_json_line('{"a": 1}', 5.0) == '{"a": 1}'
    assert json.loads(as_json_line('{"a": 1}', 5.0, child="x")) == {"a": 1, "child": "x"}
    assert as_json_line('{"child": "y"}', 5.0, child="x") == '{"child": "y"}'


def test_a_stream_writes_whole_lines_only() -> None:
    behind = io.StringIO()
    stream = JsonStream(behind, lambda: 7.0)
    print("half", end="", file=stream)
    assert behind.getvalue() == ""
    print(" and half\n\nnext", file=stream)
    assert [line["message"] for line in lines(behind)] == ["half and half", "next"]
    stream.write("x" * (MAX_LINE_CHARACTERS + 1))
    assert len(lines(behind)) == 3
    assert not stream.isatty() and stream.writable()


def test_threads_do_not_mix_their_lines() -> None:
    behind = io.StringIO()
    stream = JsonStream(behind)
    threads = [threading.Thread(target=lambda: [stream.write("0123456789\n") for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {line["message"] for line in lines(behind)} == {"0123456789"} and len(lines(behind)) == 800


def test_the_events_of_a_run_are_told_with_run_round_and_site(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, RUN_LOG):
        tell_events("ab")(Event("site_refused", 1.0, {"round": 2, "site": "north", "code": "PAUSED", "reason": "", "private": "x"}))
    line = json.loads(JsonLines().format(caplog.records[0]))
    assert (line["run"], line["round"], line["site"], line["code"]) == ("ab", 2, "north", "PAUSED")
    assert line["message"] == "site refused" and "private" not in line
