# SPDX-License-Identifier: Apache-2.0
"""What studies may still spend: promised at approval, so that two studies are never promised the same budget.

An earmark is for one study on one line. A later one takes its place, whatever account it names; a count of zero withdraws it. Each
charge of the study on that line uses one up, a round that is charged twice after a restore only one. An earmark allows nothing by
itself: a round is charged, and checked, as without it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from client.ledger.rows import EarmarkEntry
from common.errors import StorageError
from common.privacy.accountant import composed_json
from common.privacy.charge_book import Charge, Line, State


@dataclass(frozen=True)
class Promise:
    """What is left of an earmark: `count` releases of the earmark's event. `new_runs`: runs that have charged nothing yet."""

    earmark: EarmarkEntry
    count: int
    new_runs: int

    @property
    def event_json(self) -> str:
        """All that it still allows, as one event (canonical JSON)."""
        return composed_json(self.earmark.event_json, self.count)


class Earmarks:
    """The earmarks that a sequence of rows leads to."""

    def __init__(self) -> None:
        self._standing: dict[tuple[str, Line], EarmarkEntry] = {}

    def apply(self, entry: EarmarkEntry, is_account: bool) -> None:
        """Take over a row. Raises StorageError for one that could not have been written."""
        if not is_account:
            raise StorageError(f"ledger: an earmark for account {entry.account[:12]}, which has no patients; restore it from its backup")
        self._standing[entry.study_id, entry.line] = entry

    def standing(self, study_id: str, line: Line) -> EarmarkEntry | None:
        """The newest earmark of a study on a line; None when it has none or it was withdrawn."""
        found = self._standing.get((study_id, line))
        return found if found is not None and found.count > 0 else None

    def changes(self, entry: EarmarkEntry) -> bool:
        """Whether a row with this entry would say anything new."""
        known = self._standing.get((entry.study_id, entry.line))
        return entry != known if known is not None else entry.count > 0

    def promises(self, charges: Iterable[Charge]) -> Iterator[Promise]:
        """What each standing earmark still promises, when `charges` are all charges of the ledger."""
        if self._standing:
            used = _rounds(charges)
            yield from (promise for entry in self._standing.values() if (promise := _left(entry, used)).count > 0)


def left_of(entry: EarmarkEntry, charges: Iterable[Charge]) -> Promise:
    """What `entry` would still promise, when `charges` are all charges of the ledger; its count may be 0."""
    return _left(entry, _rounds(charges))


Rounds = dict[tuple[str, Line], set[tuple[str, int]]]
"""Run and round of every charge, by study and line."""


def _rounds(charges: Iterable[Charge]) -> Rounds:
    found: Rounds = {}
    for charge in charges:
        if charge.state is not State.SETTLED:
            found.setdefault((charge.key.study_id, charge.key.line), set()).add((charge.key.run_id, charge.key.round))
    return found


def _left(entry: EarmarkEntry, used: Rounds) -> Promise:
    rounds = used.get((entry.study_id, entry.line), set())
    return Promise(entry, max(entry.count - len(rounds), 0), max(entry.runs - len({run for run, _ in rounds}), 0))
