# SPDX-License-Identifier: Apache-2.0
"""Receipts for the sites: the newest ledger head of each, which it gets back signed with its own next instruction.

A hospital's head is made durable with each of its replies, before the round goes on; a simulation's at the end of the round.

The coordinator does not read a head. The receipt protects the site's patients: a site whose ledger was restored from an old copy learns
from it that rows are missing, and refuses to train until they are charged again.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import NamedTuple

from flwr.app import RecordDict

from common.crypto.secrets import Secret
from common.errors import StorageError
from common.files import locked, write_atomic
from common.privacy.receipts import make_receipt
from common.riders import head_of, with_receipt

KEY_FILE = "coordinator.key"
HEADS_FILE = "ledger-heads.json"


class Receipts:
    """The heads in the server's home, and the key that signs them; made when it is not there. Several runs at once may share a home."""

    def __init__(self, home: Path) -> None:
        self._path = home / HEADS_FILE
        self._signer = Secret.ensure(home / KEY_FILE).signer
        self._heads = _read_heads(self._path)

    def attach(self, site: str, records: RecordDict) -> RecordDict:
        """An instruction as it goes to one site: with that site's receipt and no other's."""
        known = self._heads.get(site)
        return records if known is None else with_receipt(records, make_receipt(known.head, self._signer))

    def take(self, site: str, records: RecordDict) -> None:
        """Note the head that rides on a site's reply."""
        head = head_of(records)
        if head is not None:
            self._heads[site] = _Head(head, time.time())

    def save(self) -> None:
        """Make what was noted durable, beside what other runs noted meanwhile. Raises StorageError."""
        if not self._heads:
            return
        with locked(self._path.with_name(f".{HEADS_FILE}.lock")):
            for site, stored in _read_heads(self._path).items():
                if site not in self._heads or stored.received > self._heads[site].received:
                    self._heads[site] = stored
            write_atomic(self._path, json.dumps({site: [known.head, known.received] for site, known in self._heads.items()}))


def newest_receipt(home: Path, site: str) -> str | None:
    """The receipt for the newest head of a site's ledger, for a site that asks; None when none ever came. Raises StorageError."""
    known = _read_heads(home / HEADS_FILE).get(site)
    return None if known is None else make_receipt(known.head, Secret.read(home / KEY_FILE).signer)


class _Head(NamedTuple):
    """A site's head and when it came, in seconds since the epoch."""

    head: str
    received: float


def _read_heads(path: Path) -> dict[str, _Head]:
    """A head without a time was written by an older version, and is older than any other."""
    if not path.exists():
        return {}
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        return {
            str(site): _Head(value, 0.0) if isinstance(value, str) else _Head(str(value[0]), float(value[1]))
            for site, value in stored.items()
        }
    except (OSError, ValueError, AttributeError, TypeError, IndexError) as error:
        raise StorageError(f"{path}: cannot be read ({error}); delete it, and the sites get no receipt until their next reply") from error
