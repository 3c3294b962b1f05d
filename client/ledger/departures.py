# SPDX-License-Identifier: Apache-2.0
"""What is known to have left, held against what is charged: each has to have a charge of its own.

A receipt of the coordinator says exactly what a restored ledger lacks. Where there is none (nobody answers, or the reply never arrived),
the log of what left still names study, run, round and line. Whose patients paid it does not name: such a charge counts for every account.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from client.ledger.fold import TAG_LENGTH, UNKNOWN_MESSAGE, LedgerFold
from client.ledger.rows import ChargeEntry, ReceiptId
from common.privacy.charge_book import Charge, ChargeKey, Line, Slot, State

EVERYBODY = "everybody, as the log of what left names no account"
Mechanism = tuple[str, int]
"""The event (canonical JSON) of one release, and its steps."""


@dataclass(frozen=True)
class Departure:
    """Something that left and has to be paid for. `head`: the ledger's head that rode along, where it is known."""

    slot: Slot
    payload_sha256: str
    head: ReceiptId | None = None


@dataclass(frozen=True)
class Exits:
    """Where departures are read, each time anew, and what a release of a study on a line costs where the ledger has forgotten it.

    `planned` gives None for a study that is not known here.
    """

    departures: Callable[[], Sequence[Departure]]
    planned: Callable[[str, Line], Mechanism | None]


def uncharged(fold: LedgerFold, exits: Exits, departures: Iterable[Departure]) -> tuple[list[ChargeEntry], list[Slot]]:
    """The charges that are missing, and what left of which nobody knows the cost. The same bytes may leave as often as they like."""
    entries: list[ChargeEntry] = []
    unknown: list[Slot] = []
    for slot, payloads in _by_slot(departures).items():
        charges = [charge for charge in fold.charge_fold.charges if charge.key.slot == slot]
        entries += map(ChargeEntry, _closed(charges))
        lacking = payloads[len(charges) :]
        mechanism = _mechanism(fold, exits, slot) if lacking else None
        if lacking and mechanism is None:
            unknown.append(slot)
        elif mechanism is not None:
            entries += [ChargeEntry(_recovered(slot, payload, mechanism)) for payload in lacking]
    return entries, unknown


def _by_slot(departures: Iterable[Departure]) -> dict[Slot, list[str]]:
    found: dict[Slot, dict[str, None]] = {}
    for one in departures:
        found.setdefault(one.slot, {})[one.payload_sha256] = None
    return {slot: list(payloads) for slot, payloads in found.items()}


def _closed(charges: Iterable[Charge]) -> Iterator[Charge]:
    """A charge that the ledger takes for unused, though its reply left: it stays, and is never trained again."""
    return (replace(charge, state=State.RECOVERED) for charge in charges if charge.state in (State.RESERVED, State.SETTLED))


def _mechanism(fold: LedgerFold, exits: Exits, slot: Slot) -> Mechanism | None:
    """What one release costs: as other rounds of the study were charged, as it was promised, or as the study plans it."""
    study_id, _, _, line = slot
    for charge in reversed(fold.charge_fold.charges):
        if (charge.key.study_id, charge.key.line) == (study_id, line):
            return charge.event_json, charge.steps
    promised = fold.earmarks.standing(study_id, line)
    return exits.planned(study_id, line) if promised is None else (promised.event_json, _steps(promised.event_json))


def _steps(event_json: str) -> int:
    return int(json.loads(event_json).get("count", 1))


def _recovered(slot: Slot, payload_sha256: str, mechanism: Mechanism) -> Charge:
    study_id, run_id, number, line = slot
    key = ChargeKey(EVERYBODY, study_id, run_id, number, UNKNOWN_MESSAGE + payload_sha256[:TAG_LENGTH], line)
    return Charge(key, State.RECOVERED, *mechanism)
