# SPDX-License-Identifier: Apache-2.0
"""The ledger's head, signed by the site, and the coordinator's receipt for it.

The head rides on each reply: row number, hash, and a sealed summary that only the site can open. The coordinator keeps the newest head
of each site and sends it back, signed, with the next instruction to that site. A receipt shows that the ledger once held that row; its
summary says what every charge up to that row was, so that after a restore each lost one can be charged again at its planned value.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from client.ledger.rows import ReceiptId
from common.crypto.sealing import seal
from common.crypto.secrets import Secret
from common.crypto.signatures import is_signed
from common.errors import ProtocolError
from common.privacy.receipts import receipt_bytes

HEAD_PURPOSE: Final = b"wardround ledger head 1\n"
SEAL_PURPOSE: Final = "ledger summary"


@dataclass(frozen=True)
class Receipt:
    """A receipt that both the site and the coordinator signed."""

    row: int
    hash: str
    sealed: str
    text: str

    @property
    def id(self) -> ReceiptId:
        """Row number and hash."""
        return (self.row, self.hash)


def signed_head(secret: Secret, row: int, digest: str, summary: str) -> str:
    """The text that rides on a reply."""
    head = _canonical({"row": row, "hash": digest, "sealed": seal(secret.derive(SEAL_PURPOSE), summary)})
    return _canonical({"head": head, "signature": secret.signer.sign(HEAD_PURPOSE + head.encode())})


def read_receipt(text: str, secret: Secret, coordinator_keys: Collection[str]) -> Receipt:
    """Check a coordinator's receipt. Raises ProtocolError when a signature is bad or it is for another site's ledger."""
    try:
        plain = json.loads(text)
        signed, signature = _text(plain, "head"), _text(plain, "signature")
        if not any(is_signed(key, receipt_bytes(signed), signature) for key in coordinator_keys):
            raise ProtocolError("receipt: not signed by the coordinator whose key is in site.json")
        outer = json.loads(signed)
        head = _text(outer, "head")
        if not is_signed(secret.signer.public_key, HEAD_PURPOSE + head.encode(), _text(outer, "signature")):
            raise ProtocolError("receipt: its head was not signed by this site")
        facts = json.loads(head)
        return Receipt(int(facts["row"]), _text(facts, "hash"), _text(facts, "sealed"), _canonical(plain))
    except (ValueError, KeyError, TypeError) as error:
        raise ProtocolError(f"receipt: cannot be read ({type(error).__name__})") from error


def _text(plain: dict[str, Any], name: str) -> str:
    if not isinstance(plain[name], str):
        raise TypeError(name)
    return str(plain[name])


def _canonical(plain: dict[str, object]) -> str:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"))
