# SPDX-License-Identifier: Apache-2.0
"""What comes in place of a reply: an error, as the SuperLink or a site makes it."""

from __future__ import annotations

from flwr.app import Error, Message, Metadata
from flwr.app.message import make_message

LINK = 1


def error_reply(source: int, code: int, reason: str) -> Message:
    """An error in the place of a reply, from the SuperLink (or our grid, which speaks for it) or from a site."""
    metadata = Metadata(
        run_id=1,
        message_id="",
        src_node_id=source,
        dst_node_id=LINK,
        reply_to_message_id="x",
        group_id="",
        created_at=0.0,
        ttl=0.0,
        message_type="train",
    )
    return make_message(metadata=metadata, error=Error(code, reason))
