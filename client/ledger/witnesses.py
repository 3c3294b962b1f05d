# SPDX-License-Identifier: Apache-2.0
"""Who, beside receipts, may show that a ledger is an old copy of itself; `client.ledger.site_witness` has those of a site.

A sighting names a row that the ledger must have, or an id that a recovery must have answered. A ledger that has neither is behind.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from client.ledger.rows import ReceiptId


@dataclass(frozen=True)
class Sighting:
    """A head that the ledger must have, or must have answered; `what` says in words who shows it."""

    id: ReceiptId
    what: str


class Witness(Protocol):
    """Whoever knows heads of a ledger."""

    def sightings(self) -> list[Sighting]:
        """What is known now. Raises StorageError when it cannot be read, and then nothing trains."""
        ...


class NoWitness:
    """Nothing is known: for a ledger that is only read, and for tests of the ledger by itself."""

    def sightings(self) -> list[Sighting]:
        """None."""
        return []
