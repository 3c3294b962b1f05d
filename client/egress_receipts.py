# SPDX-License-Identifier: Apache-2.0
"""egress-receipts.jsonl: the coordinator's receipts for what the site said about its replies, append-only, synced.

Each comes with the site's own signed statement, so a coordinator cannot invent a line that never was: a receipt counts only if this site
signed the statement, the coordinator signed the receipt (with a key from an offer that the study key of the invitation signed), and the
two fit. If the file is lost, the daemon fetches all of them again.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.offers import offers
from client.site_home import SiteHome
from common.crypto.secrets import Secret
from common.errors import ProtocolError, StorageError
from common.federation import EgressReceipt, EgressStatement
from common.files import append_durably, locked
from common.signed import Signed


@dataclass(frozen=True)
class Taken:
    """What became of receipts: how many are new and kept, why others are not, and the highest id seen (for the next `after`)."""

    kept: int
    problems: tuple[str, ...]
    last_id: int


@dataclass(frozen=True)
class Acknowledged:
    """A statement of this site that the coordinator has a reply for."""

    statement: EgressStatement
    statement_sha256: str
    received: float


class ReceiptItem(BaseModel):
    """One receipt as it is fetched and stored; `id` is the coordinator's number for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int = Field(ge=1, lt=1 << 63)
    statement: Signed
    receipt: Signed

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))


@dataclass(frozen=True)
class ReceiptRules:
    """Whose signatures count: the site's own key, and the coordinator's."""

    site: str
    signing_key: str
    receipt_keys: Collection[str]

    @classmethod
    def of(cls, home: SiteHome) -> ReceiptRules:
        """Raises InputError, StorageError when the site's own files cannot be read."""
        keys = {offer.start.receipt_key for offer in offers(home)}
        return cls(home.read_invitation().site, Secret.read(home.key).signer.public_key, keys)

    def check(self, item: ReceiptItem) -> Acknowledged:
        """Raises ProtocolError for a receipt that does not count."""
        digest = item.statement.sha256
        statement = EgressStatement.verified(item.statement, self.signing_key)
        receipt = self._receipt(item.receipt)
        if receipt.site != self.site:
            raise ProtocolError(f"egress receipt: is for site {receipt.site}, this is {self.site}")
        if (receipt.statement_sha256, receipt.number, receipt.head) != (digest, statement.number, statement.head):
            raise ProtocolError("egress receipt: is for another statement than the one beside it")
        return Acknowledged(statement, digest, receipt.received)

    def _receipt(self, signed: Signed) -> EgressReceipt:
        for key in self.receipt_keys:
            with suppress(ProtocolError):
                return EgressReceipt.verified(signed, key)
        raise ProtocolError("egress receipt: no coordinator of an offered study signed it")


def take_receipts(home: SiteHome, receipts: Sequence[Mapping[str, Any]]) -> Taken:
    """Keep what `Coordinator.receipts(after)` brought, durably, as far as it counts; one that is known is not written again.

    Raises StorageError, and InputError when the site's own files cannot be read.
    """
    if not receipts:
        return Taken(0, (), 0)
    rules, items, problems, last_id = ReceiptRules.of(home), [], [], 0
    for plain in receipts:
        try:
            item = ReceiptItem.model_validate(plain)
            last_id = max(last_id, item.id)
            rules.check(item)
            items.append(item)
        except ValidationError as error:
            problems.append(f"egress receipt: cannot be read ({error.error_count()} problems); the two ends may differ in version")
        except ProtocolError as error:
            problems.append(str(error))
    return Taken(_keep(home.egress_receipts, items), tuple(problems), last_id)


def last_receipt_id(home: SiteHome) -> int:
    """The highest id in egress-receipts.jsonl, 0 if there is none: the `after` of the first call. Raises StorageError."""
    return max((item.id for item in _items(home.egress_receipts) if item is not None), default=0)


def acknowledged(home: SiteHome) -> tuple[list[Acknowledged], int]:
    """Every receipt of the file that counts, and how many lines do not. Raises StorageError, InputError."""
    items = list(_items(home.egress_receipts))
    if not items:
        return [], 0
    rules, found = ReceiptRules.of(home), []
    for item in items:
        if item is not None:
            with suppress(ProtocolError):
                found.append(rules.check(item))
    return found, len(items) - len(found)


def _keep(path: Path, items: Sequence[ReceiptItem]) -> int:
    """Append what is new; returns how much that was."""
    with locked(path.with_name(f".{path.name}.lock")):
        known = {item.statement.sha256 for item in _items(path) if item is not None}
        new = {item.statement.sha256: item for item in items}
        texts = [item.to_json() for digest, item in new.items() if digest not in known]
        if texts:
            append_durably(path, "".join(f"{text}\n" for text in texts).encode())
    return len(texts)


def _items(path: Path) -> Iterator[ReceiptItem | None]:
    """Each whole line; None for one that is no receipt."""
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}; check permissions") from error
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        try:
            yield ReceiptItem.model_validate_json(line)
        except ValidationError:
            yield None
