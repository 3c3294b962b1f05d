# SPDX-License-Identifier: Apache-2.0
"""What the sites sign about their replies, checked and receipted as the replies come in; for runs whose sites' signing keys are known."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import RecordDict

from common.crypto.signatures import Signer
from common.errors import ProtocolError
from common.protocol import Instruction
from server.egress_receipts import Expected, check_and_receipt
from server.state import State


@dataclass(frozen=True)
class Witnessed:
    """A site's statement about one reply, as the run store keeps it; `receipt` is the signed receipt for it, as JSON."""

    payload_sha256: str
    egress_number: int
    egress_head: str
    receipt: str


@dataclass(frozen=True)
class Statements:
    """Checks the statements of one run's sites; `signing_keys` maps a site to its Ed25519 key in hexadecimal."""

    state: State
    signer: Signer
    study_id: str
    signing_keys: Mapping[str, str]

    def expected(self, instruction: Instruction) -> Expected:
        """What the statements about replies to this instruction have to be about."""
        return Expected(self.study_id, instruction.run_id, instruction.round, instruction.sha256)

    def take(self, site: str, records: RecordDict, expected: Expected) -> Witnessed:
        """Check one reply's statement and give the receipt. Raises ProtocolError, StorageError."""
        key = self.signing_keys.get(site)
        if key is None:
            raise ProtocolError(f"reply: {site} has no signing key in this run")
        found = check_and_receipt(self.state, self.signer, site, records, signing_key=key, expected=expected, now=time.time())
        statement = found.statement
        return Witnessed(statement.payload_sha256, statement.number, statement.head, found.receipt.to_json())
