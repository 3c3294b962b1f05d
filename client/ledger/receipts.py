# SPDX-License-Identifier: Apache-2.0
"""The site's own file of receipts, apart from the ledger: append-only, one JSON line each, synced before the caller hears of it.

It shows that a ledger was restored from an old copy. Without a coordinator's key in `site.json` no receipt is believed.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from client.ledger.heads import Receipt, read_receipt
from common.crypto.secrets import Secret
from common.errors import ProtocolError, StorageError
from common.files import append_durably, locked


class ReceiptFile:
    """Receipts in `path`. Only what is new since the last call is read."""

    def __init__(self, path: Path, secret: Secret, coordinator_keys: Collection[str]) -> None:
        self.path = path
        self._secret = secret
        self._coordinator_keys = frozenset(coordinator_keys)
        self._receipts: list[Receipt] = []
        self._size_bytes = 0

    def receipts(self) -> list[Receipt]:
        """All receipts that are signed as they should be, in the order of arrival. A last line cut by a crash is left out."""
        try:
            content = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise StorageError(f"cannot read {self.path}: {error.strerror or error}; check permissions") from error
        if len(content) < self._size_bytes:
            self._receipts, self._size_bytes = [], 0
        new = content[self._size_bytes : content.rfind(b"\n") + 1]
        self._receipts += [found for line in new.splitlines() if (found := self._checked(line.decode(errors="replace"))) is not None]
        self._size_bytes += len(new)
        return list(self._receipts)

    def add(self, text: str) -> None:
        """Keep a receipt for good; one that is known is not written again. Raises ProtocolError when it is not to be believed."""
        if not self._coordinator_keys:
            raise ProtocolError("receipt: site.json has no coordinator_key, so it cannot be checked and is not kept")
        receipt = read_receipt(text, self._secret, self._coordinator_keys)
        with locked(self.path.with_name(f".{self.path.name}.lock")):
            if receipt.id not in {known.id for known in self.receipts()}:
                append_durably(self.path, receipt.text.encode() + b"\n")

    def _checked(self, line: str) -> Receipt | None:
        try:
            return read_receipt(line, self._secret, self._coordinator_keys)
        except ProtocolError:
            return None
