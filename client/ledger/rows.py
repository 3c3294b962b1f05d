# SPDX-License-Identifier: Apache-2.0
"""What one row of the ledger says, and how it is chained.

A row is (number, content, previous, hash, mac): numbers count from 1, `content` is canonical JSON with its `kind` and a random `nonce`,
`previous` is the hash of the row before (64 zeros for the first), `hash` the SHA-256 of the three, `mac` HMAC-SHA256 of the hash with a
key of the site. The nonce makes no two rows alike: a round that is charged anew after a restore is not the charge that was lost.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from common.errors import InputError, StorageError
from common.privacy.charge_book import Charge, Line, charge_from_plain, charge_to_plain, check_event

BEFORE_THE_FIRST: Final = "0" * 64
ReceiptId = tuple[int, str]
"""Row number and hash of a head that a coordinator acknowledged."""


@dataclass(frozen=True)
class ChargeEntry:
    """A charge after the row: reserved, releasing, sent, settled or recovered."""

    charge: Charge


@dataclass(frozen=True)
class PatientsEntry:
    """Patients came to an account. Their pseudonyms are in the side table; `patients_sha256` is their digest. `delta` holds for good."""

    account: str
    delta: float
    patients_sha256: str


@dataclass(frozen=True)
class MergeEntry:
    """Two accounts share a patient: `account` is part of `into` from now on, with all it ever paid."""

    account: str
    into: str


@dataclass(frozen=True)
class RecoveryEntry:
    """After a restore: what these receipts know of lost rows is charged again, in the rows before this one."""

    receipts: tuple[ReceiptId, ...]


@dataclass(frozen=True)
class WriteOffEntry:
    """IT closes an account for good, with the reason in words. `receipts` are answered by it."""

    account: str
    reason: str
    receipts: tuple[ReceiptId, ...]


@dataclass(frozen=True)
class EarmarkEntry:
    """IT has promised a study so many releases of a mechanism on a line, over all its `runs`; it takes the place of an earlier promise.

    Zero of both withdraws it.
    """

    account: str
    line: Line
    study_id: str
    event_json: str
    count: int
    runs: int

    def __post_init__(self) -> None:
        check_event(self.event_json, 1)
        problems = [f"earmark: {name} is empty" for name in ("account", "study_id") if not getattr(self, name)]
        if not (self.count >= self.runs >= 0 and (self.count == 0) == (self.runs == 0)):
            problems.append(f"earmark: {self.count} releases in {self.runs} runs; both are above 0 or both are 0")
        if problems:
            raise InputError(problems)


Entry = ChargeEntry | PatientsEntry | MergeEntry | RecoveryEntry | WriteOffEntry | EarmarkEntry


@dataclass(frozen=True)
class Row:
    """One row as it is stored."""

    number: int
    content: str
    previous: str
    hash: str
    mac: str

    @classmethod
    def following(cls, number: int, head: str, entry: Entry, key: bytes) -> Row:
        """The row after row `number`, whose hash is `head`."""
        content = entry_to_json(entry, secrets.token_hex(8))
        digest = _hash(number + 1, content, head)
        return cls(number + 1, content, head, digest, _mac(key, digest))

    def entry(self, number: int, head: str, key: bytes) -> Entry:
        """What the row says, if it is the row after row `number` with hash `head`. Raises StorageError naming the row."""
        remedy = "the ledger is damaged or was changed; restore it from its backup"
        if (self.number, self.previous, self.hash) != (number + 1, head, _hash(self.number, self.content, self.previous)):
            raise StorageError(f"ledger: row {self.number} does not follow from row {number}; {remedy}")
        if not hmac.compare_digest(self.mac, _mac(key, self.hash)):
            raise StorageError(f"ledger: row {self.number} was not written with this site's key; {remedy}")
        try:
            return entry_from_json(self.content)
        except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:
            raise StorageError(f"ledger: row {self.number} cannot be read ({type(error).__name__}); {remedy}") from error


def entry_to_json(entry: Entry, nonce: str) -> str:
    """An entry as canonical JSON."""
    plain = charge_to_plain(entry.charge) if isinstance(entry, ChargeEntry) else asdict(entry)
    return json.dumps({"kind": type(entry).__name__, "nonce": nonce, **plain}, sort_keys=True, separators=(",", ":"), allow_nan=False)


def entry_from_json(text: str) -> Entry:
    """What `entry_to_json` wrote. Raises KeyError, TypeError, ValueError, AttributeError or InputError for anything else."""
    plain = json.loads(text)
    nonce = plain.pop("nonce")
    entry = _READERS[plain.pop("kind")](plain)
    if entry_to_json(entry, nonce) != text:
        raise ValueError("not in canonical form")
    return entry


def _charge(plain: dict[str, Any]) -> ChargeEntry:
    charge = charge_from_plain(plain)
    check_event(charge.event_json, charge.steps)
    return ChargeEntry(charge)


def _earmark(plain: dict[str, Any]) -> EarmarkEntry:
    if type(plain["count"]) is not int or type(plain["runs"]) is not int:
        raise TypeError("count")
    return EarmarkEntry(**{**plain, "line": Line(plain["line"])})


def _receipts(plain: dict[str, Any]) -> tuple[ReceiptId, ...]:
    return tuple((int(number), str(digest)) for number, digest in plain["receipts"])


_READERS: Final[Mapping[str, Callable[[dict[str, Any]], Entry]]] = {
    "ChargeEntry": _charge,
    "PatientsEntry": lambda plain: PatientsEntry(**plain),
    "MergeEntry": lambda plain: MergeEntry(**plain),
    "RecoveryEntry": lambda plain: RecoveryEntry(_receipts(plain)),
    "EarmarkEntry": _earmark,
    "WriteOffEntry": lambda plain: WriteOffEntry(plain["account"], plain["reason"], _receipts(plain)),
}


def _hash(number: int, content: str, previous: str) -> str:
    return hashlib.sha256(f"{number}\n{previous}\n{content}".encode()).hexdigest()


def _mac(key: bytes, digest: str) -> str:
    return hmac.new(key, digest.encode(), hashlib.sha256).hexdigest()
