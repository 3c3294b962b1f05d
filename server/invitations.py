# SPDX-License-Identifier: Apache-2.0
"""An invitation as the coordinator keeps it, and who may use it: one request, before it ends, for the invited name."""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import RefusedError


@dataclass(frozen=True)
class InvitationEntry:
    """An invitation as it is kept: the token only as its digest; `request_sha256` of the request that used it."""

    site: str
    token_sha256: str
    expires: float
    request_sha256: str | None


def usable(entry: InvitationEntry | None, name: str, request_sha256: str, now: float) -> InvitationEntry:
    """The invitation, if this request may use it or has used it. Raises RefusedError saying why not."""
    ask = "ask the coordinator for a new one (`wardround-server invite`)"
    if entry is None:
        raise RefusedError("INVITATION_UNKNOWN", f"this invitation is not known or has been replaced; {ask}")
    if entry.site != name:
        raise RefusedError("INVITATION_NAME", f"this invitation is for another site than {name}; {ask}")
    if entry.request_sha256 is None and entry.expires <= now:
        raise RefusedError("INVITATION_EXPIRED", f"this invitation has expired; {ask}")
    if entry.request_sha256 not in (None, request_sha256):
        raise RefusedError(
            "INVITATION_USED", f"this invitation was used with other keys; if that was not you, tell the coordinator by phone; else {ask}"
        )
    return entry
