# SPDX-License-Identifier: Apache-2.0
"""What coordinator and sites sign for each other: the start of a run, a site's approval, and the statement about a reply.

    StartRecord      signed with the study-signing key: this study, this run, these sites, these initial weights
    ApprovalRecord   signed by a site: so many runs of this study on this cohort, up to this ε
    EgressStatement  signed by a site: these bytes left in answer to those
    EgressReceipt    signed by the coordinator: it has seen that statement

A study travels as its canonical JSON beside its start record; `StartRecord.study_id` is the SHA-256 of that text.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from common.signed import Record
from common.wire_names import SITE_NAME

DIGEST = "^[0-9a-f]{64}$"
RUN_ID = "^[0-9a-f]{32}$"
NAME = f"^{SITE_NAME.pattern}$"

NO_MESSAGE = "0" * 64
NO_RUN = "0" * 32
"""What a site writes about a message that it did not read: no message and no study, no run."""

STUDY_KEY = "study"
SIGNATURE_KEY = "signature"
RESUME_KEY = "resume_from"
"""The keys of a run's configuration: the study's canonical JSON; `Signed.to_json()` of its start record; the Flower run that is
continued, or nothing."""


class StartRecord(Record):
    """The start of one run. Times are seconds since the epoch. `receipt_key` checks the coordinator's receipts."""

    purpose: ClassVar[str] = "start record 1"

    study_id: str = Field(pattern=DIGEST)
    run_id: str = Field(pattern=RUN_ID)
    sites: tuple[str, ...] = Field(min_length=1, max_length=1000)
    min_sites: int = Field(ge=1)
    initial_weights_sha256: str = Field(pattern=DIGEST)
    receipt_key: str = Field(pattern=DIGEST)
    version: str = Field(max_length=40)
    created: float
    expires: float


class ApprovalRecord(Record):
    """A site's answer to a study: approved (for `runs` runs, `epsilon_total` over all of them, None without privacy), or rejected."""

    purpose: ClassVar[str] = "approval 1"

    site: str = Field(pattern=NAME)
    study_id: str = Field(pattern=DIGEST)
    decision: Literal["approved", "rejected"]
    cohort: str = Field(max_length=63)
    runs: int = Field(ge=0, le=1000)
    initial_weights_sha256: str = Field(pattern=DIGEST)
    client_version: str = Field(max_length=40)
    epsilon_total: float | None
    approved_by: str = Field(max_length=200)
    created: float


class EgressStatement(Record):
    """What a site says about one reply. `head` is the hash of the egress line before the one of this reply, `number` that line's number.

    `incoming_sha256` is `Instruction.sha256` of the message answered (64 zeros when it could not be read), `payload_sha256` that of
    `common.protocol.payload_sha256`.
    """

    purpose: ClassVar[str] = "egress statement 1"

    study_id: str = Field(pattern=DIGEST)
    run_id: str = Field(pattern=RUN_ID)
    round: int = Field(ge=0)
    incoming_sha256: str = Field(pattern=DIGEST)
    payload_sha256: str = Field(pattern=DIGEST)
    number: int = Field(ge=0)
    head: str = Field(pattern=DIGEST)


class EgressReceipt(Record):
    """The coordinator has received a reply with this statement; `statement_sha256` is the digest of the signed statement's JSON."""

    purpose: ClassVar[str] = "egress receipt 1"

    site: str = Field(pattern=NAME)
    statement_sha256: str = Field(pattern=DIGEST)
    number: int = Field(ge=0)
    head: str = Field(pattern=DIGEST)
    received: float
