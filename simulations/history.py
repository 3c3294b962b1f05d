# SPDX-License-Identifier: Apache-2.0
"""What happened in a run, folded from its event file and the sites' journals one line at a time.

Only the numbers that the report shows are kept: a few bytes for each site and round, never the lines themselves, so that reading a long
run takes no more memory than what is drawn of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from client.journal import RoundEntry, read_entries
from client.site import journal_path
from common.events import Event, read_events
from simulations.layout import RunLayout


@dataclass
class SiteHistory:
    """One site's rounds: `loss` and `epsilon` (upper bound) by round, the last word of each round counts; `device` of its first one."""

    loss: dict[int, float] = field(default_factory=dict)
    epsilon: dict[int, float] = field(default_factory=dict)
    rounds: set[int] = field(default_factory=set)
    refusals: Counter[str] = field(default_factory=Counter)
    steps: int = 0
    seconds: float = 0.0
    device: str | None = None

    @property
    def mean_step_seconds(self) -> float | None:
        """Seconds of one step, None before the first."""
        return self.seconds / self.steps if self.steps else None

    def take(self, entry: RoundEntry) -> None:
        """Count one line of the journal in."""
        self.rounds.add(entry.round)
        self.steps += entry.steps
        self.seconds += entry.seconds
        self.device = self.device or entry.device
        for values, value in ((self.loss, entry.loss), (self.epsilon, entry.epsilon)):
            values.pop(entry.round, None)
            if value is not None:
                values[entry.round] = value


@dataclass(frozen=True)
class History:
    """A run so far. `seconds` is the time in which it was at work, `round_seconds` that of each finished round."""

    seconds: float
    round_seconds: Mapping[int, float]
    sites: Mapping[str, SiteHistory]

    @property
    def device(self) -> str | None:
        """Where the first site that trained did so."""
        return next((site.device for site in self.sites.values() if site.device), None)


def read_history(layout: RunLayout, names: Iterable[str], run_id: str) -> History:
    """Fold the files of a run directory; lines of other runs in a site's journal are left out."""
    sites = {name: SiteHistory() for name in names}
    for name, site in sites.items():
        for entry in read_entries(journal_path(layout.site(name))):
            if entry.run_id == run_id:
                site.take(entry)
    round_seconds: dict[int, float] = {}
    for event in read_events(layout.events):
        if event.name == "round_done":
            round_seconds[int(str(event.facts["round"]))] = float(str(event.facts["seconds"]))
        elif event.name == "site_refused" and event.facts.get("site") in sites:
            sites[str(event.facts["site"])].refusals[str(event.facts["code"])] += 1
    return History(active_seconds(read_events(layout.events)), round_seconds, sites)


def active_seconds(events: Iterable[Event]) -> float:
    """Seconds in which the run was at work: from each start or resumption to the last event before the next one."""
    total, start, last = 0.0, None, None
    for event in events:
        if event.name == "run_started" and "resumed_from" not in event.facts:  # the simulation's own, not that of the server in it
            total += (last - start) if start is not None and last is not None else 0.0
            start = event.time
        last = event.time
    return total + ((last - start) if start is not None and last is not None else 0.0)
