# SPDX-License-Identifier: Apache-2.0
"""How the gateway says no: a status, a code, and one sentence that says what to do. Nothing of the request is repeated in it."""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """Why a request was refused; `code` of the answer and of its line in the access log."""

    NO_CERTIFICATE = "NO_CERTIFICATE"
    CERTIFICATE_REFUSED = "CERTIFICATE_REFUSED"
    NO_SUCH_CALL = "NO_SUCH_CALL"
    CALL_FORBIDDEN = "CALL_FORBIDDEN"
    WRONG_METHOD = "WRONG_METHOD"
    BAD_HEADERS = "BAD_HEADERS"
    BAD_QUERY = "BAD_QUERY"
    BODY_TOO_LARGE = "BODY_TOO_LARGE"
    BODY_TOO_SLOW = "BODY_TOO_SLOW"
    MALFORMED = "MALFORMED"
    TOO_MANY_REQUESTS = "TOO_MANY_REQUESTS"
    WRONG_NODE_KEY = "WRONG_NODE_KEY"
    WRONG_NODE = "WRONG_NODE"
    NOT_REGISTERED = "NOT_REGISTERED"
    RUN_NOT_APPROVED = "RUN_NOT_APPROVED"
    NOT_ADDRESSED = "NOT_ADDRESSED"
    NOT_YOUR_SESSION = "NOT_YOUR_SESSION"
    REPLY_TOO_LARGE = "REPLY_TOO_LARGE"
    TOO_MANY_REPLIES = "TOO_MANY_REPLIES"
    WITHHELD = "WITHHELD"
    SUPERLINK_DOWN = "SUPERLINK_DOWN"
    STORAGE = "STORAGE"
    INTERNAL = "INTERNAL"


class Denied(Exception):
    """The request is refused. `code` may be one of another part's codes (an enrolment that was refused, say)."""

    def __init__(self, status: int, code: str, message: str, retry_after_seconds: float | None = None) -> None:
        self.status, self.code, self.message = status, code, message
        self.retry_after_seconds = retry_after_seconds
        super().__init__(f"{status} {code}: {message}")


class ClientGone(Exception):
    """The other end closed the connection before its request was complete."""
