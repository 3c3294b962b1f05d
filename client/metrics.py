# SPDX-License-Identifier: Apache-2.0
"""The site's `/metrics`, served by the daemon: what the site's own files say at the moment of the scrape.

    daemon.json              stage, run and round in hand
    egress.jsonl             what left, and each refusal by its code
    rounds.jsonl, daemon.log seconds by phase since the daemon was started
    ledger.sqlite            rows, and ε by account (`client.metrics_budget`)
    tls.crt, ca.crt          days left

For hospital IT. Nothing here may tell more than the coordinator or IT may know in any case: no patient count, no loss, no name or path of
data, no pseudonym. An account is shown by the first letters of its random name.
"""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Final

from client.daemon_log import LOG_FILE
from client.gpu import CardMemory, card_memory
from client.metrics_budget import Budget
from client.own_certificate import read_own
from client.site_home import SiteHome
from client.status import DaemonState, Stage
from common.crypto.certificates import DAY_SECONDS, not_after, read_certificate
from common.json_tail import JsonTail
from common.metrics_page import BUILD, Page, Sample, counter, gauge

ID_CHARACTERS: Final = 8
"""So much of a run's id is shown, as at the coordinator."""
CARD_SECONDS: Final = 10.0
PHASES: Final = {"answer": "answer_seconds", "release": "release_seconds", "send": "send_seconds"}
IT: Final = "hospital IT"
PRIVACY: Final = "hospital IT and whoever answers for privacy"
_ACCOUNT: Final = ("account", "line")

STAGE = gauge("wardround_site_stage", "1 for the stage that the daemon is in, 0 for the others", IT, ("stage",))
PAUSED = gauge("wardround_site_paused", "1 while `wardround-client pause` holds", IT)
ROUND = gauge("wardround_site_round", "The round that is worked on; absent while there is none", IT, ("run",))
CONTACT = gauge("wardround_site_seconds_since_contact", "Since a call to the coordinator last worked", IT)
PHASE_SECONDS = counter(
    "wardround_site_phase_seconds_total",
    "Since the daemon was started: train (inside answer), answer (fetch, check, train), release (through the door out), send",
    IT,
    ("phase",),
)
EGRESS_MESSAGES = counter("wardround_site_egress_messages_total", "Lines of the egress log: messages that left", IT, ("kind",))
EGRESS_BYTES = counter("wardround_site_egress_bytes_total", "Bytes of content that left, as in the egress log", IT, ("kind",))
REFUSALS = counter("wardround_site_refusals_total", "Refusals that left, by code", IT, ("code",))
EPSILON = gauge(
    "wardround_site_epsilon_spent",
    "ε (PLD) that an account has spent; +Inf: something left without protection",
    PRIVACY,
    _ACCOUNT,
)
EPSILON_LEFT = gauge("wardround_site_epsilon_left", "ε that was neither spent nor promised to a study", PRIVACY, _ACCOUNT)
EPSILON_CAP = gauge("wardround_site_epsilon_cap", "Most ε that the account may ever spend (site.yaml)", PRIVACY, _ACCOUNT)
EPSILON_ROW = gauge("wardround_site_epsilon_row", "The ledger's row that the ε figures are of", PRIVACY)
LEDGER_ROWS = gauge("wardround_site_ledger_rows", "Rows of the privacy ledger", PRIVACY)
LEDGER_BEHIND = gauge("wardround_site_ledger_behind", "1: the ledger is an old copy, nothing trains until it is recovered", PRIVACY)
CERTIFICATE = gauge("wardround_site_certificate_days_left", "Days until a certificate ends: own or authority", IT, ("of",))
DISK_FREE = gauge("wardround_site_disk_free_bytes", "Free space where the site's folder lies", IT)
GPU_USED = gauge("wardround_site_gpu_memory_used_bytes", "Memory in use on a graphics card, by anybody", IT, ("card",))
GPU_TOTAL = gauge("wardround_site_gpu_memory_total_bytes", "Memory of a graphics card", IT, ("card",))
METRICS: Final = (
    *(BUILD, STAGE, PAUSED, ROUND, CONTACT, PHASE_SECONDS, EGRESS_MESSAGES, EGRESS_BYTES, REFUSALS, EPSILON, EPSILON_LEFT, EPSILON_CAP),
    *(EPSILON_ROW, LEDGER_ROWS, LEDGER_BEHIND, CERTIFICATE, DISK_FREE, GPU_USED, GPU_TOTAL),
)


@dataclass
class SiteMetrics:
    """Reads one site's files. `heard_at` says when the coordinator last answered; `clock` gives seconds since the epoch."""

    home: SiteHome
    heard_at: Callable[[], float]
    clock: Callable[[], float] = field(default=time.time)

    def __post_init__(self) -> None:
        self.budget = Budget(self.home.folder)
        self._egress = JsonTail(self.home.egress)
        self._messages: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._refusals: Counter[str] = Counter()
        self._rounds = JsonTail(self.home.journal, from_the_end=True)
        self._log = JsonTail(self.home.logs / LOG_FILE, from_the_end=True)
        self._phases = dict.fromkeys(("train", *PHASES), 0.0)
        self._cards: list[CardMemory] = []
        self._cards_at = float("-inf")

    def page(self) -> Page:
        """The page of this site."""
        parts = {"daemon": self.daemon, "phases": self.phases, "egress": self.egress, "ledger": self.ledger}
        return Page(METRICS, {**parts, "certificates": self.certificates, "machine": self.machine})

    def daemon(self) -> Iterator[Sample]:
        """What the daemon does."""
        yield BUILD.at(1, "site", metadata.version("wardround"))
        state = DaemonState.read(self.home)
        for stage in Stage:
            yield STAGE.at(float(state is not None and state.stage is stage), stage.name.lower())
        yield PAUSED.at(float(self.home.paused.exists()))
        yield CONTACT.at(max(0.0, self.clock() - self.heard_at()))
        if state is not None and state.stage is Stage.WORKING and state.run_id is not None and state.round is not None:
            yield ROUND.at(state.round, state.run_id[:ID_CHARACTERS])

    def phases(self) -> Iterator[Sample]:
        """Seconds by phase."""
        for entry in self._rounds.news():
            self._phases["train"] += float(entry["seconds"])
        for line in self._log.news():
            for phase, fact in PHASES.items():
                self._phases[phase] += float(line.get(fact, 0.0))
        yield from (PHASE_SECONDS.at(seconds, phase) for phase, seconds in self._phases.items())

    def egress(self) -> Iterator[Sample]:
        """What left."""
        for line in self._egress.news():
            kind = str(line["kind"])
            if kind == "refusal":
                self._refusals[str(line["code"])] += 1
            if kind != "note":
                self._messages[kind] += 1
                self._bytes[kind] += int(line["size_bytes"])
        yield from (EGRESS_MESSAGES.at(count, kind) for kind, count in sorted(self._messages.items()))
        yield from (EGRESS_BYTES.at(size, kind) for kind, size in sorted(self._bytes.items()))
        yield from (REFUSALS.at(count, code) for code, count in sorted(self._refusals.items()))

    def ledger(self) -> Iterator[Sample]:
        """The ledger, and the newest figures of ε that there are."""
        row = ledger_row(self.home.ledger)
        yield LEDGER_ROWS.at(row)
        figures = self.budget.want(row) if row else None
        if figures is None:
            return
        yield EPSILON_ROW.at(figures.row)
        yield LEDGER_BEHIND.at(float(figures.behind))
        for one in figures.accounts:
            yield EPSILON.at(one.epsilon, one.account, one.line)
            if one.cap is not None and one.left is not None:
                yield EPSILON_CAP.at(one.cap, one.account, one.line)
                yield EPSILON_LEFT.at(one.left, one.account, one.line)

    def certificates(self) -> Iterator[Sample]:
        """Days left of the site's own certificate, once there is one, and of the authority's."""
        own = read_own(self.home)
        if own is not None:
            yield CERTIFICATE.at(self._days(not_after(own)), "own")
        yield CERTIFICATE.at(self._days(not_after(read_certificate(self.home.ca_certificate.read_bytes()))), "authority")

    def machine(self) -> Iterator[Sample]:
        """Disk and graphics cards."""
        yield DISK_FREE.at(shutil.disk_usage(self.home.folder).free)
        if self.clock() - self._cards_at >= CARD_SECONDS:
            self._cards, self._cards_at = card_memory(), self.clock()
        for card in self._cards:
            yield GPU_USED.at(card.used_bytes, str(card.number))
            yield GPU_TOTAL.at(card.total_bytes, str(card.number))

    def _days(self, end: float) -> float:
        return (end - self.clock()) / DAY_SECONDS


def ledger_row(path: Path) -> int:
    """Number of the ledger's last row, 0 where there is no ledger yet. Raises sqlite3.Error."""
    if not path.exists():
        return 0
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=2.0)) as database:
        return int(database.execute("SELECT coalesce(max(number), 0) FROM rows").fetchone()[0])
