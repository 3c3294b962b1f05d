# SPDX-License-Identifier: Apache-2.0
"""The run store: what happened in each round, in SQLite, for the coordinator to query."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import Any

from common.databases import Schema, bring_up_to_date, statements
from common.errors import StorageError

_FIRST = """
CREATE TABLE IF NOT EXISTS run (study_id TEXT NOT NULL, run_id TEXT PRIMARY KEY, started REAL NOT NULL, study TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS rounds (
    run_id TEXT NOT NULL, round INTEGER NOT NULL, updates INTEGER NOT NULL, seconds REAL NOT NULL, update_norm REAL NOT NULL,
    PRIMARY KEY (run_id, round)
);
CREATE TABLE IF NOT EXISTS replies (
    run_id TEXT NOT NULL, round INTEGER NOT NULL, site TEXT NOT NULL, outcome TEXT NOT NULL, seconds REAL NOT NULL,
    PRIMARY KEY (run_id, round, site)
);
CREATE TABLE IF NOT EXISTS details (
    run_id TEXT NOT NULL, round INTEGER NOT NULL, kind TEXT NOT NULL, site TEXT NOT NULL, outcome TEXT NOT NULL, seconds REAL NOT NULL,
    reason TEXT NOT NULL, bytes_down INTEGER NOT NULL, bytes_up INTEGER NOT NULL, payload_sha256 TEXT, egress_number INTEGER,
    egress_head TEXT, receipt TEXT, PRIMARY KEY (run_id, round, kind, site)
);
CREATE TABLE IF NOT EXISTS measurements (
    run_id TEXT NOT NULL, round INTEGER NOT NULL, sites INTEGER NOT NULL, auroc REAL, standard_error REAL, counts TEXT NOT NULL,
    PRIMARY KEY (run_id, round)
);
"""
_STRIKES = """
CREATE TABLE IF NOT EXISTS strikes (
    run_id TEXT NOT NULL, round INTEGER NOT NULL, site TEXT NOT NULL, reason TEXT NOT NULL, time REAL NOT NULL, pardoned REAL,
    PRIMARY KEY (run_id, round, site)
);
"""
SCHEMA = Schema((statements(_FIRST), statements(_STRIKES)))
"""A file without a number has the tables of the first step, and perhaps some of those that came after."""
STRIKES = 3
"""So many bad updates suspend a site for the run."""


@dataclass(frozen=True)
class ReplyDetail:
    """One answer to one message: `kind` is train or evaluate, `outcome` update, evaluated or a refusal code, `seconds` until it was there.

    `bytes_down` and `bytes_up` count tensors. The rest is what the site signed about its reply, where there is a signature to check:
    the reply's digest, the number of its line in the site's egress log, the head before that line, and our signed receipt (JSON).
    """

    kind: str
    site: str
    outcome: str
    seconds: float
    reason: str
    bytes_down: int
    bytes_up: int
    payload_sha256: str | None = None
    egress_number: int | None = None
    egress_head: str | None = None
    receipt: str | None = None


@dataclass(frozen=True)
class StoredMeasurement:
    """A private evaluation of the model after a round: what follows from `counts`, the sum of the noisy histograms of so many sites.

    `auroc` is None where it is not measurable, `standard_error` where it cannot even be estimated.
    """

    round: int
    sites: int
    auroc: float | None
    standard_error: float | None
    counts: list[Any]


@dataclass(frozen=True)
class StoredRound:
    """A finished round: how many updates it took, how long, and the L2 norm of their mean."""

    round: int
    updates: int
    seconds: float
    update_norm: float


_DETAIL_COLUMNS = tuple(part.name for part in fields(ReplyDetail))


def _detail_rows(run_id: str, round_number: int, details: Sequence[ReplyDetail]) -> list[tuple[str, tuple[object, ...]]]:
    names = ("run_id", "round", *_DETAIL_COLUMNS)
    statement = f"INSERT OR REPLACE INTO details ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
    return [(statement, (run_id, round_number, *astuple(detail))) for detail in details]


class RunStore:
    """Rounds and replies of the runs in one SQLite file. A round that is repeated after a crash replaces its rows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with closing(self._connect()) as database:
            database.isolation_level = None
            bring_up_to_date(database, SCHEMA, path)

    def begin(self, study_id: str, run_id: str, study: str) -> None:
        """Note that a run started; a resumed run is noted once."""
        self._write([("INSERT OR IGNORE INTO run VALUES (?, ?, ?, ?)", (study_id, run_id, time.time(), study))])

    def record_round(
        self,
        run_id: str,
        round_number: int,
        *,
        seconds: float,
        update_norm: float,
        outcomes: dict[str, tuple[str, float]],
        details: Sequence[ReplyDetail] = (),
    ) -> None:
        """Store one finished round. `outcomes` maps a site to (`update` or its refusal code, seconds until its reply)."""
        updates = sum(outcome == "update" for outcome, _ in outcomes.values())
        rows: list[tuple[str, tuple[object, ...]]] = [
            ("INSERT OR REPLACE INTO rounds VALUES (?, ?, ?, ?, ?)", (run_id, round_number, updates, seconds, update_norm)),
            ("DELETE FROM replies WHERE run_id = ? AND round = ?", (run_id, round_number)),
            ("DELETE FROM details WHERE run_id = ? AND round = ? AND kind = 'train'", (run_id, round_number)),
        ]
        rows += [
            ("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?)", (run_id, round_number, site, outcome, after))
            for site, (outcome, after) in outcomes.items()
        ]
        self._write(rows + _detail_rows(run_id, round_number, details))

    def record_details(self, run_id: str, round_number: int, details: Sequence[ReplyDetail]) -> None:
        """Store the answers to messages outside a finished round: of an evaluation, or of a round that brought too few updates."""
        self._write(_detail_rows(run_id, round_number, details))

    def details(self, run_id: str) -> list[tuple[int, ReplyDetail]]:
        """Every stored answer of a run with its round, in the order of the rounds."""
        query = f"SELECT round, {', '.join(_DETAIL_COLUMNS)} FROM details WHERE run_id = ? ORDER BY round, kind DESC, site"
        with closing(self._connect()) as database:
            return [(row[0], ReplyDetail(*row[1:])) for row in database.execute(query, (run_id,)).fetchall()]

    def traffic(self, run_id: str) -> dict[str, tuple[int, int]]:
        """Bytes of tensors to and from each site, over all stored answers of a run."""
        query = "SELECT site, sum(bytes_down), sum(bytes_up) FROM details WHERE run_id = ? GROUP BY site"
        with closing(self._connect()) as database:
            return {site: (int(down), int(up)) for site, down, up in database.execute(query, (run_id,)).fetchall()}

    def rounds(self, run_id: str) -> list[StoredRound]:
        """The finished rounds of a run."""
        query = "SELECT round, updates, seconds, update_norm FROM rounds WHERE run_id = ? ORDER BY round"
        with closing(self._connect()) as database:
            return [StoredRound(*row) for row in database.execute(query, (run_id,)).fetchall()]

    def record_measurement(
        self, run_id: str, round_number: int, *, sites: int, auroc: float | None, standard_error: float | None, counts: list[Any]
    ) -> None:
        """Store a private evaluation of the model after a round; see `StoredMeasurement`."""
        values = (run_id, round_number, sites, auroc, standard_error, json.dumps(counts))
        self._write([("INSERT OR REPLACE INTO measurements VALUES (?, ?, ?, ?, ?, ?)", values)])

    def measurements(self, run_id: str) -> list[StoredMeasurement]:
        """The private evaluations of a run, in the order of the rounds."""
        query = "SELECT round, sites, auroc, standard_error, counts FROM measurements WHERE run_id = ? ORDER BY round"
        with closing(self._connect()) as database:
            rows = database.execute(query, (run_id,)).fetchall()
        return [StoredMeasurement(round_, sites, auroc, error, json.loads(counts)) for round_, sites, auroc, error, counts in rows]

    def strike(self, run_id: str, round_number: int, site: str, reason: str) -> None:
        """Note a bad update of a site, at most one a round: after a crash the same bytes may come again. Raises StorageError."""
        row = (run_id, round_number, site, reason, time.time())
        self._write([("INSERT OR REPLACE INTO strikes VALUES (?, ?, ?, ?, ?, NULL)", row)])

    def suspended(self, run_id: str) -> dict[str, list[str]]:
        """The sites that get no message in this run, each with the reasons for its strikes, oldest first."""
        query = "SELECT site, reason FROM strikes WHERE run_id = ? AND pardoned IS NULL ORDER BY site, round"
        reasons: dict[str, list[str]] = {}
        with closing(self._connect()) as database:
            for site, reason in database.execute(query, (run_id,)).fetchall():
                reasons.setdefault(site, []).append(reason)
        return {site: found for site, found in reasons.items() if len(found) >= STRIKES}

    def pardon(self, run_id: str, site: str) -> None:
        """Let a site take part again, from the next round on; its strikes so far do not count any more. Raises StorageError."""
        statement = "UPDATE strikes SET pardoned = ? WHERE run_id = ? AND site = ? AND pardoned IS NULL"
        self._write([(statement, (time.time(), run_id, site))])

    def _connect(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, timeout=30)
        database.execute("PRAGMA journal_mode=PERSIST")  # as safe as deleting the journal each time, and several times as fast
        return database

    def _write(self, rows: list[tuple[str, tuple[object, ...]]]) -> None:
        try:
            with closing(self._connect()) as database, database:
                for statement, values in rows:
                    database.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise StorageError(f"{self._path}: cannot write the run store ({error}); check free space and permissions") from error
