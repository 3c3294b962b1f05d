# SPDX-License-Identifier: Apache-2.0
"""Receipts for the sites: the newest ledger head of each, which it gets back signed with its own next instruction.

The coordinator does not read a head. The receipt protects the site's patients: a site whose ledger was restored from an old copy learns
from it that rows are missing, and refuses to train until they are charged again.
"""

from __future__ import annotations

import json
from pathlib import Path

from flwr.app import RecordDict

from common.crypto.secrets import Secret
from common.errors import StorageError
from common.files import write_atomic
from common.privacy.receipts import make_receipt
from common.protocol import head_of, with_receipt

KEY_FILE = "coordinator.key"
HEADS_FILE = "ledger-heads.json"


class Receipts:
    """The heads in the server's home, and the key that signs them; made when it is not there."""

    def __init__(self, home: Path) -> None:
        self._path = home / HEADS_FILE
        self._signer = Secret.ensure(home / KEY_FILE).signer
        self._heads = _read_heads(self._path)

    def attach(self, site: str, records: RecordDict) -> RecordDict:
        """An instruction as it goes to one site: with that site's receipt and no other's."""
        head = self._heads.get(site)
        return records if head is None else with_receipt(records, make_receipt(head, self._signer))

    def take(self, site: str, records: RecordDict) -> None:
        """Note the head that rides on a site's reply."""
        head = head_of(records)
        if head is not None:
            self._heads[site] = head

    def save(self) -> None:
        """Make what was noted durable. Raises StorageError."""
        if self._heads:
            write_atomic(self._path, json.dumps(self._heads))


def _read_heads(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        heads = json.loads(path.read_text(encoding="utf-8"))
        return {str(site): str(head) for site, head in heads.items()}
    except (OSError, ValueError, AttributeError) as error:
        raise StorageError(f"{path}: cannot be read ({error}); delete it, and the sites get no receipt until their next reply") from error
