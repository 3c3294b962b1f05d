# SPDX-License-Identifier: Apache-2.0
"""What becomes one row of docs/failures.md: a fault, what both ends saw of it, how long it took, and what it cost.

    with recorder.fault("node killed in training", "SIGKILL to the daemon …", federation) as incident:
        kill()
        incident.struck()                           the clock starts (at the latest with the block)
        incident.site_saw(daemon_said(…))           a line of the site's own log or state, with its own time
        incident.coordinator_saw(reply_stored(…))   the same of the coordinator
        incident.healed()                           only where a fault lasts: recovery is counted from here
        incident.recovered(round_done(…))
        incident.is_whole(assert_whole(…))

Each scenario is one test with one row. Rows are written, one JSON file a scenario, into the folder that `ROWS_VARIABLE` names; without it
nothing is written. A scenario that has begun and not ended well leaves a file without a row, so that no older row is shown for it.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from simulations.loopback import Loopback
from simulations.processes import wait_until
from tests.support.sightings import Look, Seen
from tests.support.wholeness import Whole

ROWS_VARIABLE = "WARDROUND_FAILURE_ROWS"
NOTICE_SECONDS = 300.0
RECOVER_SECONDS = 600.0
LONGEST_TEXT = 320


@dataclass(frozen=True)
class FailureRow:
    """One row. Seconds are counted from the fault; `recover_seconds` from the end of the fault where it lasted.

    `site_saw`, `coordinator_saw`: what their own logs, state or store say, and after how many seconds ("" and None: nothing, by design).
    `missed` are the replies that rounds had to do without.
    """

    scenario: str
    fault: str
    done: str
    site_saw: str
    site_seconds: float | None
    coordinator_saw: str
    coordinator_seconds: float | None
    notice_seconds: float
    recover_seconds: float
    rounds: int
    rounds_lost: int
    charges_doubled: int
    missed: tuple[str, ...]
    remark: str = ""


@dataclass
class Incident:
    """One fault while it happens. Times are seconds since the epoch."""

    scenario: str
    fault: str
    done: str
    federation: Loopback
    began: float = field(default_factory=time.time)
    ended: float | None = None
    site: Seen | None = None
    coordinator: Seen | None = None
    recovery: Seen | None = None
    whole: Whole | None = None
    remark: str = ""

    def struck(self) -> None:
        """The fault happens now."""
        self.began = time.time()

    def healed(self) -> None:
        """The fault is over now: what was cut off is free again. Recovery is counted from here."""
        self.ended = time.time()

    def site_saw(self, look: Look, seconds: float = NOTICE_SECONDS) -> Seen:
        """Wait until hospital IT could see it, and keep what."""
        self.site = self._wait(look, "hospital IT could see it", seconds, self.began)
        return self.site

    def coordinator_saw(self, look: Look, seconds: float = NOTICE_SECONDS) -> Seen:
        """Wait until the coordinator could see it, and keep what."""
        self.coordinator = self._wait(look, "the coordinator could see it", seconds, self.began)
        return self.coordinator

    def recovered(self, look: Look, seconds: float = RECOVER_SECONDS) -> Seen:
        """Wait for the first sign, after the fault, that the work goes on."""
        self.recovery = self._wait(look, "the work goes on", seconds, self.began if self.ended is None else self.ended)
        return self.recovery

    def is_whole(self, whole: Whole) -> None:
        """What the run has come to, checked."""
        self.whole = whole

    def row(self) -> FailureRow:
        """The row, once everything is known."""
        assert self.recovery is not None and self.whole is not None, "the scenario did not say how it ended"
        noticed = [seen.time for seen in (self.site, self.coordinator) if seen is not None]
        assert noticed, "nobody noticed"
        return FailureRow(
            scenario=self.scenario,
            fault=self.fault,
            done=self.done,
            site_saw="" if self.site is None else self._text(self.site),
            site_seconds=self._after(self.site, self.began),
            coordinator_saw="" if self.coordinator is None else self._text(self.coordinator),
            coordinator_seconds=self._after(self.coordinator, self.began),
            notice_seconds=round(max(0.0, min(noticed) - self.began), 1),
            recover_seconds=round(max(0.0, self.recovery.time - (self.began if self.ended is None else self.ended)), 1),
            rounds=self.whole.rounds,
            rounds_lost=self.whole.rounds_lost,
            charges_doubled=self.whole.charges_doubled,
            missed=self.whole.missed,
            remark=self.remark,
        )

    def _wait(self, look: Look, what: str, seconds: float, since: float) -> Seen:
        found: list[Seen] = []

        def is_there() -> bool:
            seen = look(since)
            found.extend([] if seen is None else [seen])
            return bool(found)

        wait_until(is_there, f"{self.scenario}: {what}", seconds)
        return found[0]

    def _text(self, seen: Seen) -> str:
        return plain_words(seen.text, self.federation)

    @staticmethod
    def _after(seen: Seen | None, since: float) -> float | None:
        return None if seen is None else round(max(0.0, seen.time - since), 1)


class Recorder:
    """What a scenario's test writes its row with. `scenario` is the test's name, `rows` where rows are kept, if anywhere."""

    def __init__(self, scenario: str, rows: Path | None) -> None:
        self.scenario = scenario
        self.has_begun = False
        self._path = None if rows is None else rows / f"{re.sub(r'[^A-Za-z0-9_.-]', '-', scenario)}.json"
        self._write(None)

    @classmethod
    def from_environment(cls, scenario: str) -> Recorder:
        """With the folder that the environment names."""
        folder = os.environ.get(ROWS_VARIABLE)
        return cls(scenario, Path(folder) if folder else None)

    @contextmanager
    def fault(self, name: str, done: str, federation: Loopback) -> Iterator[Incident]:
        """One fault; its row is written when the block ends well."""
        self.has_begun = True
        incident = Incident(self.scenario, name, done, federation)
        yield incident
        self._write(asdict(incident.row()))

    def _write(self, row: dict[str, Any] | None) -> None:
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_text(json.dumps({"scenario": self.scenario, "row": row}, indent=1), encoding="utf-8")


def plain_words(text: str, federation: Loopback) -> str:
    """What a machine printed without what differs from run to run: folders, ports, process and run ids."""
    text = text.replace(str(federation.folder), "").replace(federation.url, "https://coordinator")
    for pattern, by in ((r"https://127\.0\.0\.1:\d+", "https://coordinator"), (r"127\.0\.0\.1:\d+", "127.0.0.1:PORT")):
        text = re.sub(pattern, by, text)
    for pattern, by in ((r"\bprocess \d+", "process N"), (r"\b\d{15,20}\b", "N"), (r"\b(?=[0-9a-f]*\d)[0-9a-f]{8,64}\b", "ID")):
        text = re.sub(pattern, by, text)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_TEXT else f"{text[: LONGEST_TEXT - 2]} …"
