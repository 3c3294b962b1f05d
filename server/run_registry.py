# SPDX-License-Identifier: Apache-2.0
"""Which Flower run is which of ours: the table `run`. A run that is resumed is another Flower run under the same run id."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from server.state import State


@dataclass(frozen=True)
class RegisteredRun:
    """`flower_run_id` is Flower's 64-bit number, `run_id` ours; `started` in seconds since the epoch."""

    flower_run_id: int
    run_id: str
    study_id: str
    started: float


class RunRegistry:
    """The table `run` of the coordinator's database. Every method raises StorageError."""

    def __init__(self, state: State) -> None:
        self._state = state

    def record(self, flower_run_id: int, run_id: str, study_id: str, started: float) -> None:
        """Note a Flower run, before its first message; the same again changes nothing."""
        row = (str(flower_run_id), run_id, study_id, started)
        with self._state.writing() as database:
            database.execute("INSERT OR IGNORE INTO run VALUES (?, ?, ?, ?)", row)

    def find(self, flower_run_id: int) -> RegisteredRun | None:
        """The run behind a Flower run."""
        with self._state.reading() as database:
            row = database.execute("SELECT * FROM run WHERE flower_run_id = ?", (str(flower_run_id),)).fetchone()
        return None if row is None else _run(row)

    def of(self, run_id: str) -> list[RegisteredRun]:
        """The Flower runs of one run, oldest first."""
        with self._state.reading() as database:
            rows = database.execute("SELECT * FROM run WHERE run_id = ? ORDER BY rowid", (run_id,)).fetchall()
        return [_run(row) for row in rows]

    def all(self) -> list[RegisteredRun]:
        """All Flower runs, oldest first."""
        with self._state.reading() as database:
            rows = database.execute("SELECT * FROM run ORDER BY started, rowid").fetchall()
        return [_run(row) for row in rows]

    def standing(self) -> list[RegisteredRun]:
        """The newest Flower run of each run whose offer stands."""
        query = (
            "SELECT run.*, MAX(run.rowid) FROM run JOIN offer ON offer.run_id = run.run_id "
            "WHERE NOT offer.withdrawn GROUP BY run.run_id ORDER BY run.rowid"
        )
        with self._state.reading() as database:
            return [_run(row) for row in database.execute(query).fetchall()]


def _run(row: sqlite3.Row) -> RegisteredRun:
    return RegisteredRun(int(row["flower_run_id"]), row["run_id"], row["study_id"], row["started"])
