# SPDX-License-Identifier: Apache-2.0
"""A ledger with one account, and receipts from a coordinator. Imports neither torch nor flwr, so that children start fast."""

import hashlib
from pathlib import Path

from client.ledger.book import Ledger
from client.ledger.receipts import ReceiptFile
from common.crypto.secrets import Secret
from common.privacy.charge_book import ChargeKey, Line
from common.privacy.receipts import make_receipt

EVENT = '{"noise_multiplier":1.0,"type":"GaussianDpEvent"}'
SITE, COORDINATOR = Secret(b"s" * 32), Secret(b"c" * 32)
PATIENTS = {Line.TRAINING: ["p1", "p2"], Line.HELD_OUT: ["p3"]}
DELTA = 1e-5


def open_book(folder: Path, secret: Secret = SITE) -> Ledger:
    return Ledger(folder / "ledger.sqlite", secret, ReceiptFile(folder / "receipts.jsonl", secret, [COORDINATOR.signer.public_key]))


def account_in(book: Ledger) -> str:
    return book.register(PATIENTS, DELTA)


def receipt_for(book: Ledger) -> str:
    return make_receipt(book.signed_head(), COORDINATOR.signer)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def key(account: str, number: int = 0, message: str = "message", run: str = "run", line: Line = Line.TRAINING) -> ChargeKey:
    return ChargeKey(account, "study", run, number, digest(message), line)


def finish(book: Ledger, one: ChargeKey, event: str = EVENT) -> None:
    """Reserve, release and send one round."""
    book.reserve(one, event, 10)
    book.releasing(one, digest(f"reply {one.round}"))
    book.sent(one)
