# SPDX-License-Identifier: Apache-2.0
"""Where an end of the federation says that something happened: the site's log and state, the coordinator's log, run store and events.

Each function gives a `Look`: asked with a time, it returns the first thing said since then that fits, with the time at which it was said,
or None as long as nothing was.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from common.events import Event, read_events
from tests.support.federation import Federation, json_lines


@dataclass(frozen=True)
class Seen:
    """What was said, and when (seconds since the epoch)."""

    time: float
    text: str


Look = Callable[[float], Seen | None]
DATE = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"
FULL_WORDS = ("No space left", "disk is full", "disk full")
_FOR_MACHINES = ("time", "flower_run", "node", "study", "run", "type", "site", "answer_seconds", "release_seconds", "send_seconds")


def daemon_said(federation: Federation, site: str, event: str, *, ahead_seconds: float = 0.0, **facts: str) -> Look:
    """A line of the site's daemon.log: its event, and for each named fact a piece of text that it holds.

    `ahead_seconds`: so far the site's clock is ahead; the time of what is seen is the real one.
    """

    def look(since: float) -> Seen | None:
        for line in json_lines(federation.hospitals[site].home / "logs" / "daemon.log"):
            at = line["time"] - ahead_seconds
            if since <= at <= time.time() and line["event"] == event and all(text in str(line.get(name)) for name, text in facts.items()):
                return Seen(at, f"daemon.log: {_words(line, 'event')}")
        return None

    return look


def first_of(*looks: Look) -> Look:
    """What one of several places says, the earliest if more do."""

    def look(since: float) -> Seen | None:
        return min(filter(None, (one(since) for one in looks)), key=lambda seen: seen.time, default=None)

    return look


def site_log_said(federation: Federation, site: str, has: str) -> Look:
    """An entry of the site's site.log with the cause of a refusal: its code, and its last line. Its clock has whole seconds."""

    def look(since: float) -> Seen | None:
        path = federation.hospitals[site].home / "site.log"
        for entry in re.split(rf"^(?={DATE})", path.read_text(encoding="utf-8") if path.exists() else "", flags=re.MULTILINE):
            if has in entry:
                at = _time_at_start(entry)
                if at >= int(since):
                    return Seen(at, f"site.log: {entry[19:].split(':')[0].strip()}: {entry.strip().splitlines()[-1]}")
        return None

    return look


def site_saw_full_disk(federation: Federation, site: str) -> Look:
    """The line of site.log that tells a full disk apart from everything else. Its clock has whole seconds."""

    def look(since: float) -> Seen | None:
        for line in _lines(federation.hospitals[site].home / "site.log"):
            if "DISK FULL" in line and re.match(DATE, line) and _time_at_start(line) >= int(since):
                return Seen(_time_at_start(line), f"site.log: {line[19:].strip()}")
        return None

    return look


def disk_full_said(federation: Federation) -> Look:
    """A line of any log of the coordinator that says so; the time is that of the look."""
    logs = federation.coordinator / "logs"
    before = {path: len(_lines(path)) for path in logs.rglob("*.log")}

    def look(since: float) -> Seen | None:
        for path in sorted(logs.rglob("*.log")):
            for line in _lines(path)[before.get(path, 0) :]:
                if any(word in line for word in FULL_WORDS):
                    return Seen(time.time(), f"{path.relative_to(logs)}: {_said_in(line)}")
        return None

    return look


def site_state(federation: Federation, site: str, stage: str) -> Look:
    """What `wardround-client status` says of the daemon and of its last problem, once it is in this stage."""

    def look(since: float) -> Seen | None:
        state = json.loads((federation.hospitals[site].home / "daemon.json").read_text(encoding="utf-8"))
        if state["stage"] != stage or state["since"] < since:
            return None
        problem = f"; last problem: {state['last_error']}" if (state["last_error_at"] or 0) >= since else ""
        return Seen(state["since"], f"status: {stage}{problem}")

    return look


def run_event(federation: Federation, run_id: str, name: str, **facts: Any) -> Look:
    """An event of a run with these facts."""

    def look(since: float) -> Seen | None:
        for event in events_of(federation, run_id):
            if event.time >= since and event.name == name and all(event.facts.get(key) == value for key, value in facts.items()):
                return Seen(event.time, f"events: {_words({'event': event.name, **event.facts}, 'event')}")
        return None

    return look


def round_done(federation: Federation, run_id: str, updates: int) -> Look:
    """A round that ended with at least so many updates."""

    def look(since: float) -> Seen | None:
        for event in events_of(federation, run_id):
            if event.time >= since and event.name == "round_done" and int(str(event.facts["updates"])) >= updates:
                return Seen(event.time, f"round {event.facts['round']} done")
        return None

    return look


def refused(federation: Federation, run_id: str, site: str, code: str, reason: str = "") -> Look:
    """The event of a site's refusal, or of its silence, in a run: the site by name, the code, and a piece of the reason."""

    def look(since: float) -> Seen | None:
        for event in events_of(federation, run_id):
            facts = event.facts
            is_it = event.name == "site_refused" and (facts["site"], facts["code"]) == (site, code)
            if is_it and event.time >= since and reason in str(facts["reason"]):
                said = f": {facts['reason']}" if facts["reason"] else ""
                return Seen(event.time, f"events, run store: round {facts['round']}, {site}, {code}{said}")
        return None

    return look


def up_said(federation: Federation, has: str) -> Look:
    """A line of the supervisor's up.log."""

    def look(since: float) -> Seen | None:
        for line in json_lines(federation.coordinator / "logs" / "up.log"):
            if line["time"] >= since and has in line["message"]:
                return Seen(line["time"], f"up.log: {line['message']}")
        return None

    return look


def log_said(path: Path, has: str) -> Look:
    """A line that is new in a log from now on; the time is that of the look, its lines may have another clock."""
    before = len(_lines(path))

    def look(since: float) -> Seen | None:
        for line in _lines(path)[before:]:
            if has in line:
                return Seen(time.time(), f"{path.name}: {_said_in(line)}")
        return None

    return look


def status_says(federation: Federation, has: str, label: str = "") -> Look:
    """A line of what `wardround-server status` shows, without its frame; `label` says what its columns are."""

    def look(since: float) -> Seen | None:
        shown = federation.on_server("status", expect=None).out
        lines = [line for line in (" ".join(line.replace("│", " ").split()) for line in shown.splitlines()) if has in line]
        return Seen(time.time(), f"status: {label}{lines[0]}") if lines else None

    return look


def events_of(federation: Federation, run_id: str) -> list[Event]:
    """All events of a run so far."""
    return list(read_events(federation.coordinator / "runs" / run_id / "events.jsonl"))


def _time_at_start(line: str) -> float:
    return datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S").astimezone().timestamp()


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []


def _said_in(line: str) -> str:
    """The message of a line of a log, with the last line of its cause, whether that is JSON or text that begins with a date."""
    try:
        found = json.loads(line)
        cause = str(found.get("trace") or "").splitlines()[-1:]
        return ": ".join([str(found["message"]), *cause])
    except (ValueError, KeyError, TypeError):
        return re.sub(r"^\S+ \S+ [A-Z]+ ", "", line)


def _words(facts: Mapping[str, Any], first: str) -> str:
    """Facts as words: the first one bare, the others with their names, without the time and what only machines need."""
    rest = {name: value for name, value in facts.items() if name not in (first, *_FOR_MACHINES)}
    return " ".join([str(facts[first]), *(f"{name}={value}" for name, value in rest.items())])
