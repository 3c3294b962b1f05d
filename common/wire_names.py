# SPDX-License-Identifier: Apache-2.0
"""The protocol's words: what both ends have to know of a message without reading one. Nothing heavy is loaded for them."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Final

MAX_STUDY_CHARACTERS: Final = 1 << 20
SITE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class RefusalCode(StrEnum):
    """Why a site, or the connection to it, gave no update. The only thing about a failure that leaves a site."""

    STUDY_INVALID = "STUDY_INVALID"
    STUDY_NOT_APPROVED = "STUDY_NOT_APPROVED"
    POLICY_REFUSED = "POLICY_REFUSED"
    PAUSED = "PAUSED"
    PROTOCOL_MISMATCH = "PROTOCOL_MISMATCH"
    BUDGET_EXHAUSTED = "BUDGET_EXHAUSTED"
    LEDGER_BEHIND = "LEDGER_BEHIND"
    ROUND_CONFLICT = "ROUND_CONFLICT"
    ROUND_LOST = "ROUND_LOST"
    NOT_READY = "NOT_READY"
    TRAINING_FAILED = "TRAINING_FAILED"
    INTERRUPTED = "INTERRUPTED"
    WORKER_LOST = "WORKER_LOST"
    NO_REPLY = "NO_REPLY"
    REPLY_INVALID = "REPLY_INVALID"
