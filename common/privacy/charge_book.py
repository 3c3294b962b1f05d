# SPDX-License-Identifier: Apache-2.0
"""The contract between training and whatever records what it costs.

    reserve  --NEW-->  reserved  --releasing-->  releasing  --sent-->  sent
                          |
                          `--settle_to_zero-->  settled (costs nothing)

A charge is reserved before the first gradient, in full. It goes to zero only if no gradient was computed, which only the book that
reserved it knows; otherwise it stays, also after a crash. `releasing` is recorded before the first byte of the finished reply leaves.
The same key again is answered by its state, so every update that left has exactly one charge. `recovered` is a charge that a restored
book had lost: it costs, and its reply is never made again.
"""

from __future__ import annotations

import json
import operator
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from common.errors import InputError, RefusedError

if TYPE_CHECKING:
    from dp_accounting import DpEvent

_DIGEST = re.compile(r"[0-9a-f]{64}")
ROUND_CONFLICT = "ROUND_CONFLICT"
ROUND_LOST = "ROUND_LOST"
BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
CHARGE_STATE = "CHARGE_STATE"


class Line(StrEnum):
    """Which patients of an account pay: those who train, or those who are kept out of training and only measure it."""

    TRAINING = "training"
    HELD_OUT = "held-out"


Slot = tuple[str, str, int, Line]


@dataclass(frozen=True)
class ChargeKey:
    """What one charge is for. `account` is the patients, `run_id` our own id, `message_sha256` the digest of the incoming message."""

    account: str
    study_id: str
    run_id: str
    round: int
    message_sha256: str
    line: Line = Line.TRAINING

    def __post_init__(self) -> None:
        problems = [f"charge: {name} is empty" for name in ("account", "study_id", "run_id") if not getattr(self, name)]
        if self.round < 0:
            problems.append(f"charge: round {self.round} is below 0")
        if not _DIGEST.fullmatch(self.message_sha256):
            problems.append("charge: message_sha256 is not a SHA-256 in hexadecimal")
        if problems:
            raise InputError(problems)

    @property
    def slot(self) -> Slot:
        """What there is one message and one account for: a round of a run on a line, also when the cohort has changed in between."""
        return (self.study_id, self.run_id, self.round, self.line)


class Standing(StrEnum):
    """The answer to a reservation.

    NEW: charged just now. RETRY: charged before and nothing has left; train anew under the same charge. RESEND: the reply may have
    left; send the stored bytes, never train.
    """

    NEW = "new"
    RETRY = "retry"
    RESEND = "resend"


class State(StrEnum):
    """Where a charge is; also the name of the row that brings it there."""

    RESERVED = "reserved"
    RELEASING = "releasing"
    SENT = "sent"
    SETTLED = "settled"
    RECOVERED = "recovered"


@dataclass(frozen=True)
class Charge:
    """One charge as it stands. `event_json` is the planned mechanism (`common.privacy.accountant`), `steps` its optimiser steps."""

    key: ChargeKey
    state: State
    event_json: str
    steps: int
    reply_sha256: str | None = None


class ChargeBook(ABC):
    """A durable record of charges. Each method returns when its row cannot be lost any more; safe in several processes at once."""

    @abstractmethod
    def reserve(self, key: ChargeKey, event_json: str, steps: int) -> Standing:
        """Charge `key` in full, or say how it stands.

        Raises RefusedError ROUND_CONFLICT when its round was asked for with another message or another mechanism, ROUND_LOST when its
        reply left before the book was restored.
        """

    @abstractmethod
    def releasing(self, key: ChargeKey, reply_sha256: str) -> None:
        """Say that the reply with this digest, now in the outbox, is about to leave. Raises RefusedError CHARGE_STATE."""

    @abstractmethod
    def sent(self, key: ChargeKey) -> None:
        """Say that the reply has left. Raises RefusedError CHARGE_STATE."""

    @abstractmethod
    def settle_to_zero(self, key: ChargeKey) -> None:
        """Take the charge back because no gradient was computed.

        Only the object whose `reserve` answered NEW can know that, and only before it answered the key again. Raises RefusedError
        CHARGE_STATE.
        """

    @abstractmethod
    def charges(self) -> list[Charge]:
        """Every charge as it stands, in the order of reservation, settled ones included."""

    def spent(self) -> list[DpEvent]:
        """The history for the accountant: the events of all charges that are not settled."""
        return _events(charge for charge in self.charges())

    def spent_outside(self, key: ChargeKey) -> list[DpEvent]:
        """What the account and line of `key` paid beyond one charge for each round of its own run, which the run's plan covers."""
        planned: set[Slot] = set()
        beyond = []
        for charge in self.history(key.account, key.line):
            own = charge.key.slot not in planned and charge.key.slot == (key.study_id, key.run_id, charge.key.round, key.line)
            if own and charge.state is not State.SETTLED:
                planned.add(charge.key.slot)
            else:
                beyond.append(charge)
        return _events(beyond)

    def history(self, account: str, line: Line) -> list[Charge]:
        """The charges of one account on one line, settled ones included."""
        return [charge for charge in self.charges() if (charge.key.account, charge.key.line) == (account, line)]


def _events(charges: Iterable[Charge]) -> list[DpEvent]:
    from common.privacy.accountant import event_from_json

    return [event_from_json(charge.event_json) for charge in charges if charge.state is not State.SETTLED]


class ChargeFold:
    """The state that a sequence of rows leads to, and which row may come next. Holds no file; every book folds with it.

    `same_patients` says whether two account names mean one account: accounts may have been merged since a row was written.
    """

    def __init__(self, same_patients: Callable[[str, str], bool] = operator.eq) -> None:
        self._same_patients = same_patients
        self._charges: dict[Slot, Charge] = {}
        self._doubled: list[Charge] = []  # recovered beside another charge for the same slot

    @property
    def charges(self) -> list[Charge]:
        """All charges, in the order of their first reservation."""
        return [*self._charges.values(), *self._doubled]

    def standing(self, key: ChargeKey, event_json: str, steps: int) -> Standing:
        """How a reservation would be answered. Raises RefusedError ROUND_CONFLICT, ROUND_LOST."""
        charge = self._charges.get(key.slot)
        if charge is None:
            return Standing.NEW
        if charge.state is State.RECOVERED:
            raise RefusedError(ROUND_LOST, f"round {key.round} of run {key.run_id} left before the ledger was restored; its reply is lost")
        if not self._is_for(charge, key):
            raise RefusedError(
                ROUND_CONFLICT, f"round {key.round} of run {key.run_id} was asked for before with another message or for other patients"
            )
        if charge.state is State.SETTLED:
            return Standing.NEW
        if (charge.event_json, charge.steps) != (event_json, steps):
            raise RefusedError(
                ROUND_CONFLICT, f"round {key.round} of run {key.run_id} was reserved with another mechanism: {charge.event_json}"
            )
        return Standing.RETRY if charge.state is State.RESERVED else Standing.RESEND

    def moved(self, key: ChargeKey, state: State, reply_sha256: str | None = None) -> Charge | None:
        """The charge after going to `state`; None if it is there already. Raises RefusedError CHARGE_STATE for an illegal move."""
        charge = self._charges.get(key.slot)
        if charge is None or not self._is_for(charge, key):
            raise RefusedError(CHARGE_STATE, f"round {key.round} of run {key.run_id} was never reserved, so it cannot be {state}")
        reply = reply_sha256 or charge.reply_sha256
        if charge.state is state and reply == charge.reply_sha256:
            return None
        before = {State.RELEASING: State.RESERVED, State.SENT: State.RELEASING, State.SETTLED: State.RESERVED}
        if charge.state is not before.get(state):
            raise RefusedError(CHARGE_STATE, f"round {key.round} of run {key.run_id} is {charge.state}, so it cannot be {state}")
        return replace(charge, state=state, reply_sha256=reply)

    def apply(self, charge: Charge) -> None:
        """Take over a recorded row. Raises RefusedError for a row that could not have been written."""
        if charge.state is State.RECOVERED:
            return self._recover(charge)
        if charge.state is State.RESERVED:
            if self.standing(charge.key, charge.event_json, charge.steps) is not Standing.NEW:
                raise RefusedError(CHARGE_STATE, f"round {charge.key.round} of run {charge.key.run_id} is reserved twice")
        elif self.moved(charge.key, charge.state, charge.reply_sha256) != charge:
            raise RefusedError(
                CHARGE_STATE, f"round {charge.key.round} of run {charge.key.run_id} is {charge.state} twice or with another plan"
            )
        self._charges[charge.key.slot] = charge
        return None

    def _recover(self, charge: Charge) -> None:
        """A lost charge costs again, and its reply is never made again. If the very same row is here, it only changes its state."""
        known = self._charges.get(charge.key.slot)
        if known is None or (known.key == charge.key and known.state in (State.RESERVED, State.SETTLED)):
            self._charges[charge.key.slot] = charge
        else:
            self._doubled.append(charge)

    def _is_for(self, charge: Charge, key: ChargeKey) -> bool:
        return charge.key.message_sha256 == key.message_sha256 and self._same_patients(charge.key.account, key.account)


def check_event(event_json: str, steps: int) -> None:
    """Raises InputError when a mechanism is not canonical JSON of an object, or has no steps."""
    try:
        plain = json.loads(event_json)
    except ValueError:
        plain = None
    if not isinstance(plain, dict) or json.dumps(plain, sort_keys=True, separators=(",", ":")) != event_json:
        raise InputError(f"charge: {event_json[:200]!r} is not a canonical event; write it with accountant.event_to_json")
    if steps < 1:
        raise InputError(f"charge: {steps} steps; a round has at least one")


def check_digest(reply_sha256: str) -> None:
    """Raises InputError when it is not a SHA-256."""
    if not _DIGEST.fullmatch(reply_sha256):
        raise InputError("charge: reply_sha256 is not a SHA-256 in hexadecimal")


def charge_to_plain(charge: Charge) -> dict[str, Any]:
    """A charge as plain JSON values."""
    return {
        "state": charge.state.value,
        "key": asdict(charge.key),
        "event": charge.event_json,
        "steps": charge.steps,
        "reply": charge.reply_sha256,
    }


def charge_from_plain(plain: dict[str, Any]) -> Charge:
    """What `charge_to_plain` wrote. Raises KeyError, TypeError, ValueError or InputError for anything else."""
    key = plain["key"]
    return Charge(ChargeKey(**{**key, "line": Line(key["line"])}), State(plain["state"]), plain["event"], plain["steps"], plain["reply"])
