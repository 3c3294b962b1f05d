# SPDX-License-Identifier: Apache-2.0
"""What rides on a message beside what it says: the ledger's head and the egress statement on a reply, a receipt on an instruction.

`payload_sha256` is the digest of what a reply says without its riders. Riders are other people's text until their signatures are
checked (`common.egress_statement`, the ledger's heads and receipts); here they are only put on and taken off.
"""

from __future__ import annotations

import hashlib
import json

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.errors import ProtocolError
from common.protocol import FACTS, PROTOCOL_VERSION
from common.wire_records import record_of

MAX_HEAD_CHARACTERS = 1 << 22
HEAD_FACT = "ledger_head"
EGRESS_FACT = "egress"
RIDING_FACTS = frozenset({HEAD_FACT, EGRESS_FACT})
"""What rides on a reply and is no part of what it says."""
_RECEIPT_FACT = "ledger_receipt"


def with_head(records: RecordDict, head: str) -> RecordDict:
    """A reply that carries the signed head of the site's ledger."""
    return _with_fact(records, HEAD_FACT, head)


def head_of(records: RecordDict) -> str | None:
    """The head that rides on a reply, as the site wrote it; None if there is none or it cannot be one."""
    return _fact_text(records, HEAD_FACT)


def with_receipt(records: RecordDict, receipt: str) -> RecordDict:
    """An instruction that carries the receipt of one site, which is no part of `Instruction.sha256`: it may come with another."""
    return _with_fact(records, _RECEIPT_FACT, receipt)


def receipt_of(records: RecordDict) -> str | None:
    """The receipt that rides on an instruction; None if there is none."""
    return _fact_text(records, _RECEIPT_FACT)


def with_egress(records: RecordDict, statement: str) -> RecordDict:
    """A reply that carries the site's signed statement about it (`common.egress_statement`)."""
    return _with_fact(records, EGRESS_FACT, statement)


def egress_of(records: RecordDict) -> str | None:
    """The statement that rides on a reply, as the site wrote it; None if there is none."""
    return _fact_text(records, EGRESS_FACT)


def is_refusal(records: RecordDict) -> bool:
    """Whether a reply says that it is a refusal; nothing else of it is looked at."""
    return _fact_text(records, "kind") == "refusal"


def payload_sha256(records: RecordDict) -> str:
    """Digest of what a reply says, the same however Flower packs it, without the two heads that ride on it (ledger, egress).

    Raises ProtocolError for a record that is neither tensors nor plain facts.
    """
    digest = hashlib.sha256(json.dumps([PROTOCOL_VERSION, sorted(records)]).encode())
    for name in sorted(records):
        record = records[name]
        if isinstance(record, ArrayRecord):
            for key in sorted(record):
                array = record[key]
                digest.update(json.dumps([name, key, list(array.shape), array.dtype, array.stype, len(array.data)]).encode())
                digest.update(array.data)
        elif isinstance(record, ConfigRecord | MetricRecord):
            plain = {key: value for key, value in record.items() if name != FACTS or key not in RIDING_FACTS}
            digest.update(json.dumps([name, plain], sort_keys=True, default=_bytes_as_text).encode())
        else:
            raise ProtocolError(f"reply: record {name[:80]} is of an unknown kind")
    return digest.hexdigest()


def _bytes_as_text(value: object) -> str:
    if isinstance(value, bytes):
        return value.hex()
    raise ProtocolError(f"reply: a fact is a {type(value).__name__}")


def _with_fact(records: RecordDict, name: str, text: str) -> RecordDict:
    """The same records (tensors are shared, not copied) with one fact more."""
    return RecordDict({**records, FACTS: ConfigRecord({**(record_of(records, FACTS, ConfigRecord) or {}), name: text})})


def _fact_text(records: RecordDict, name: str) -> str | None:
    facts = record_of(records, FACTS, ConfigRecord)
    text = facts.get(name) if facts is not None else None
    return text if isinstance(text, str) and len(text) <= MAX_HEAD_CHARACTERS else None
