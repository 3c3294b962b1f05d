# SPDX-License-Identifier: Apache-2.0
"""A coordinator's receipt for the head of a site's ledger.

The head is a text that the site signed; nobody but the site reads more into it. The receipt is that text with the coordinator's
signature: "this is the newest head that you sent me".
"""

from __future__ import annotations

import json
from typing import Final

from common.crypto.signatures import Signer

RECEIPT_PURPOSE: Final = b"wardround ledger receipt 1\n"


def make_receipt(head: str, signer: Signer) -> str:
    """The receipt for `head`, as JSON text."""
    return json.dumps({"head": head, "signature": signer.sign(receipt_bytes(head))}, sort_keys=True, separators=(",", ":"))


def receipt_bytes(head: str) -> bytes:
    """What a coordinator signs."""
    return RECEIPT_PURPOSE + head.encode()
