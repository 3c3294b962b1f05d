# SPDX-License-Identifier: Apache-2.0
"""What the researcher sees while a run goes on: the server's events, joined with what only the sites know.

The server knows who answered; loss, ε and scores stay in the sites' folders. In a simulation the researcher owns those folders, so this
follows the event file and adds what a site wrote there.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from client.journal import RoundEntry, read_entries
from client.site import evaluation_path, journal_path
from common.events import Event, Fact, Listener, parse_event
from common.files import cut_torn_line
from simulations.layout import RunLayout

POLL_SECONDS = 0.1


class EventFollower:
    """Reads the event file of a run as it grows and hands each event on. Use it in a `with` block."""

    def __init__(self, layout: RunLayout, listeners: Sequence[Listener]) -> None:
        if layout.events.exists():
            cut_torn_line(layout.events)
        self._layout = layout
        self._listeners = listeners
        self._position = layout.events.stat().st_size if layout.events.exists() else 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="wardround-events", daemon=True)

    def __enter__(self) -> EventFollower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            self._drain()
        self._drain()

    def _drain(self) -> None:
        if not self._layout.events.exists():
            return
        with self._layout.events.open("rb") as file:
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    return
                self._position += len(line)
                self._hand_on(parse_event(line.decode()))

    def _hand_on(self, event: Event) -> None:
        with suppress(OSError, ValueError):  # a site's file may be half written at this moment; the event itself is never lost
            event = enrich(self._layout, event)
        for listener in self._listeners:
            listener(event)


def enrich(layout: RunLayout, event: Event) -> Event:
    """`site_replied` becomes `site_trained` with the site's own figures; `round_done` gets the AUROC of the model it started from."""
    if event.name == "site_replied":
        return Event("site_trained", event.time, {**event.facts, **_site_facts(layout, event)})
    if event.name == "round_done":
        finished = int(str(event.facts["round"])) - 1
        return Event(event.name, event.time, {**event.facts, "auroc": live_auroc(list(layout.folder.glob("sites/*")), finished)})
    return event


def _site_facts(layout: RunLayout, event: Event) -> dict[str, Fact]:
    folder, round_number = layout.site(str(event.facts["site"])), int(str(event.facts["round"]))
    entry = _last_entry(folder, round_number)
    auroc = live_auroc([folder], round_number - 1)
    return {"loss": entry.loss if entry else None, "epsilon": entry.epsilon if entry else None, "auroc": auroc}


def _last_entry(folder: Path, round_number: int) -> RoundEntry | None:
    entries = [entry for entry in read_entries(journal_path(folder)) if entry.round == round_number]
    return entries[-1] if entries else None


def live_auroc(folders: Sequence[Path], after_round: int) -> float | None:
    """Exact AUROC of the model after so many rounds over the sites that scored it; None if nobody did or it cannot be measured."""
    from client.scores import SiteScores
    from common.metrics import metrics_of

    paths = [evaluation_path(folder, after_round) for folder in folders]
    parts = [SiteScores.read(path) for path in paths if path.exists()]
    if not parts:
        return None
    return metrics_of(np.concatenate([part.labels for part in parts]), np.concatenate([part.scores for part in parts]))["auroc"]
