# SPDX-License-Identifier: Apache-2.0
"""The books of a soak: what each hospital's ledger charged, what left, what the coordinator added up, and which kill explains a difference.

Everything is read from the raw rows and lines, not through the code that wrote them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from tests.bench.soak.schedule import Kill


class Slot(NamedTuple):
    """One round of one run at one site."""

    site: str
    run_id: str
    round: int


class Window(NamedTuple):
    """When a round began for the first time and when it was done; seconds since the epoch."""

    began: float
    done: float


@dataclass(frozen=True)
class Struck:
    """A kill that was done: when, in which round of which run, and the seconds until the next round was done (None: none was)."""

    kill: Kill
    time: float
    run_id: str
    round: int
    pid: int
    recovery_seconds: float | None = None


@dataclass
class Charges:
    """What one site's ledger says. `standing` are the keys reserved and not settled to zero; `doubled` must be empty."""

    reserved: int = 0
    standing: dict[Slot, str] = field(default_factory=dict)
    left: dict[Slot, str] = field(default_factory=dict)
    """Digest of the reply of each charge that says so."""
    doubled: list[Slot] = field(default_factory=list)


@dataclass(frozen=True)
class Unused:
    """A charge whose update was not added up, and the kill that caused it (None: none explains it)."""

    slot: Slot
    state: str
    cause: Struck | None


def read_charges(site: str, rows: Iterable[Mapping[str, Any]]) -> Charges:
    """Fold the rows of a ledger (their contents, in order). A slot reserved again without being settled before is a doubled charge."""
    found = Charges()
    for row in rows:
        if row["kind"] == "ChargeEntry":
            _take(found, Slot(site, row["key"]["run_id"], row["key"]["round"]), str(row["state"]), row["reply"])
    return found


def _take(found: Charges, slot: Slot, state: str, reply: str | None) -> None:
    if state == "reserved":
        found.reserved += 1
        if slot in found.standing:
            found.doubled.append(slot)
    if state == "settled":
        found.standing.pop(slot, None)
    else:
        found.standing[slot] = state
    if reply is not None:
        found.left[slot] = reply


def updates_that_left(site: str, lines: Iterable[Mapping[str, Any]]) -> dict[Slot, set[str]]:
    """The digests of what left for each slot, from the egress log: sent again is the same digest again."""
    found: dict[Slot, set[str]] = {}
    for line in lines:
        if line["kind"] == "update":
            found.setdefault(Slot(site, line["run_id"], line["round"]), set()).add(line["payload_sha256"])
    return found


def problems(charges: Charges, left: Mapping[Slot, set[str]], added: set[Slot]) -> list[str]:
    """Where one site's three books do not fit each other."""
    found = [f"{_words(slot)}: charged twice" for slot in charges.doubled]
    found += [f"{_words(slot)}: two different updates left" for slot, digests in left.items() if len(digests) > 1]
    found += [f"{_words(slot)}: an update left that was never charged" for slot in left if slot not in charges.standing]
    found += [f"{_words(slot)}: added up, but no update left" for slot in sorted(added) if slot not in left]
    return found


def unused(
    charges: Charges, added: set[Slot], struck: Sequence[Struck], windows: Mapping[tuple[str, int], Window], slack_seconds: float
) -> list[Unused]:
    """The charges without an aggregated update, each with the kill in the time of its round; those of the same site come first."""
    found = []
    for slot in sorted(set(charges.standing) - added):
        window = windows.get((slot.run_id, slot.round))
        nearby = [one for one in struck if window and window.began - slack_seconds <= one.time <= window.done and one.run_id == slot.run_id]
        nearby.sort(key=lambda one: (one.kill.site != slot.site, one.round != slot.round, -one.time))
        possible = [one for one in nearby if one.kill.site in ("", slot.site)]
        found.append(Unused(slot, charges.standing[slot], possible[0] if possible else None))
    return found


def _words(slot: Slot) -> str:
    return f"{slot.site}, run {slot.run_id[:8]}, round {slot.round}"
