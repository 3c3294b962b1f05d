# SPDX-License-Identifier: Apache-2.0
"""The contract between training and whatever records what it costs.

    reserve  --NEW-->  reserved  --releasing-->  releasing  --sent-->  sent
                          |
                          `--settle_to_zero-->  settled (costs nothing)

A charge is reserved before the first gradient, in full. It goes to zero only if no gradient was computed, which only the book that
reserved it knows; otherwise it stays, also after a crash. `releasing` is recorded before the first byte of the finished reply leaves.
The same key again is answered by its state, so every update that left has exactly one charge.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from common.errors import InputError, RefusedError

if TYPE_CHECKING:
    from dp_accounting import DpEvent

_DIGEST = re.compile(r"[0-9a-f]{64}")
ROUND_CONFLICT = "ROUND_CONFLICT"
CHARGE_STATE = "CHARGE_STATE"


@dataclass(frozen=True)
class ChargeKey:
    """What one charge is for. `account` is the patients, `run_id` our own id, `message_sha256` the digest of the incoming message."""

    account: str
    study_id: str
    run_id: str
    round: int
    message_sha256: str

    def __post_init__(self) -> None:
        problems = [f"charge: {name} is empty" for name in ("account", "study_id", "run_id") if not getattr(self, name)]
        if self.round < 0:
            problems.append(f"charge: round {self.round} is below 0")
        if not _DIGEST.fullmatch(self.message_sha256):
            problems.append("charge: message_sha256 is not a SHA-256 in hexadecimal")
        if problems:
            raise InputError(problems)

    @property
    def slot(self) -> tuple[str, str, int]:
        """What there is one message and one account for: a round of a run, also when the cohort has changed in between."""
        return (self.study_id, self.run_id, self.round)


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

        Raises RefusedError ROUND_CONFLICT when its round was asked for with another message or another mechanism.
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

    def spent_outside(self, account: str, study_id: str, run_id: str) -> list[DpEvent]:
        """The same without the charges of one run of one study to one account.

        What the same run charged to other patients stays in: the two accounts may share patients, so it counts in full.
        """
        return _events(charge for charge in self.charges() if (charge.key.account, *charge.key.slot[:2]) != (account, study_id, run_id))


def _events(charges: Iterable[Charge]) -> list[DpEvent]:
    from common.privacy.accountant import event_from_json

    return [event_from_json(charge.event_json) for charge in charges if charge.state is not State.SETTLED]


class ChargeFold:
    """The state that a sequence of rows leads to, and which row may come next. Holds no file; every book folds with it."""

    def __init__(self) -> None:
        self._charges: dict[ChargeKey, Charge] = {}
        self._keys: dict[tuple[str, str, int], ChargeKey] = {}

    @property
    def charges(self) -> list[Charge]:
        """All charges in the order of their first reservation."""
        return list(self._charges.values())

    def standing(self, key: ChargeKey, event_json: str, steps: int) -> Standing:
        """How a reservation would be answered. Raises RefusedError ROUND_CONFLICT."""
        known = self._keys.get(key.slot)
        if known is None:
            return Standing.NEW
        if known != key:
            raise RefusedError(
                ROUND_CONFLICT, f"round {key.round} of run {key.run_id} was asked for before with another message or for other patients"
            )
        charge = self._charges[key]
        if charge.state is State.SETTLED:
            return Standing.NEW
        if (charge.event_json, charge.steps) != (event_json, steps):
            raise RefusedError(
                ROUND_CONFLICT, f"round {key.round} of run {key.run_id} was reserved with another mechanism: {charge.event_json}"
            )
        return Standing.RETRY if charge.state is State.RESERVED else Standing.RESEND

    def moved(self, key: ChargeKey, state: State, reply_sha256: str | None = None) -> Charge | None:
        """The charge after going to `state`; None if it is there already. Raises RefusedError CHARGE_STATE for an illegal move."""
        charge = self._charges.get(key)
        if charge is None:
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
        if charge.state is State.RESERVED:
            if self.standing(charge.key, charge.event_json, charge.steps) is not Standing.NEW:
                raise RefusedError(CHARGE_STATE, f"round {charge.key.round} of run {charge.key.run_id} is reserved twice")
        elif self.moved(charge.key, charge.state, charge.reply_sha256) != charge:
            raise RefusedError(
                CHARGE_STATE, f"round {charge.key.round} of run {charge.key.run_id} is {charge.state} twice or with another plan"
            )
        self._keys[charge.key.slot] = charge.key
        self._charges[charge.key] = charge


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
    return Charge(ChargeKey(**plain["key"]), State(plain["state"]), plain["event"], plain["steps"], plain["reply"])
