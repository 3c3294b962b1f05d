# SPDX-License-Identifier: Apache-2.0
"""Every check on a call to Flower's Fleet API, in the order in which they are made: see `CHECKS`.

Flower itself checks that the node key signed the time of day, that the key belongs to the node id, and that the run is running. Whose run
and whose object it is, it does not ask. A call passes here when every check lets it pass; each looks at the calls that it is about.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.flower_compat.fleet_records import (
    Activation,
    Confirmation,
    Delivery,
    FleetCall,
    NodeCall,
    ObjectCall,
    ObjectPush,
    ReplyPush,
    RunCall,
)
from server.gateway.addressed import Addressed
from server.gateway.denied import Code, Denied
from server.gateway.fresh import Fresh
from server.gateway.limits import Limits
from server.state import State

if TYPE_CHECKING:
    from server.sites import RegisteredSite

UNSIGNED_64 = 1 << 64


@dataclass(frozen=True)
class Asked:
    """A call: the site whose certificate it came with, the node key in its header (decoded), and what it says."""

    site: RegisteredSite
    node_key: bytes
    call: FleetCall


@dataclass(frozen=True)
class Books:
    """What the checks look things up in."""

    state: State
    fresh: Fresh
    addressed: Addressed
    limits: Limits

    async def is_approved(self, site: str, flower_run_id: int) -> bool:
        """Whether the run is one that the site has approved, as of now."""
        from server.offers import is_approved

        return await self.fresh.get(("run", site, flower_run_id), lambda: is_approved(self.state, site, flower_run_id))


async def check(asked: Asked, books: Books) -> None:
    """Make every check. Raises Denied at the first that says no."""
    for one in CHECKS:
        await one(asked, books)


async def _node_key_is_the_sites(asked: Asked, _books: Books) -> None:
    keys = {asked.node_key.strip()} | ({asked.call.public_key.strip()} if isinstance(asked.call, Activation) else set())
    if keys != {asked.site.node_key.encode().strip()}:
        raise Denied(
            403,
            Code.WRONG_NODE_KEY,
            "node key and certificate must be of one site; see `wardround-client check`",
        )


async def _node_is_registered(asked: Asked, _books: Books) -> None:
    """Activation: Flower may know the node a moment before we know its id, and until then every other call would be refused."""
    if isinstance(asked.call, Activation) and asked.site.node_id is None:
        raise Denied(425, Code.NOT_REGISTERED, "this site's node is being registered; try again in some seconds", retry_after_seconds=1.0)


async def _node_id_is_the_sites(asked: Asked, _books: Books) -> None:
    if not isinstance(asked.call, NodeCall):
        return
    claimed = {asked.call.node_id} | ({asked.call.source_node_id} if isinstance(asked.call, ReplyPush) else set())
    if asked.site.node_id is None or claimed != {asked.site.node_id % UNSIGNED_64}:
        raise Denied(403, Code.WRONG_NODE, "the node id is not that of this site; activate the node again")


async def _run_is_approved(asked: Asked, books: Books) -> None:
    if isinstance(asked.call, RunCall) and not await books.is_approved(asked.site.name, asked.call.run_id):
        raise Denied(403, Code.RUN_NOT_APPROVED, "this site has not approved that run; see `wardround-client studies`")


async def _object_is_addressed(asked: Asked, books: Books) -> None:
    """Pull-object: only what is part of a message to this site."""
    call = asked.call
    if type(call) is ObjectCall and not books.addressed.has_object(asked.site.name, call.run_id, call.object_id):
        raise Denied(403, Code.NOT_ADDRESSED, "that object is not part of a message to this site that it has still to confirm")


async def _message_is_own(asked: Asked, books: Books) -> None:
    """Confirm (which deletes, and objects are shared between messages) and reply: only for a message that was delivered to this site."""
    call = asked.call
    message_id = call.message_id if isinstance(call, Confirmation) else call.reply_to if isinstance(call, ReplyPush) else None
    if message_id is not None and isinstance(call, RunCall) and not books.addressed.has_message(asked.site.name, call.run_id, message_id):
        raise Denied(403, Code.NOT_ADDRESSED, "that message was not delivered to this site")


async def _replies_are_few(asked: Asked, books: Books) -> None:
    """Push-messages: each opens a session in Flower's database, also for a reply that is there already."""
    call, most = asked.call, books.limits.replies_to_a_message
    if isinstance(call, ReplyPush) and books.addressed.taken(asked.site.name, call.run_id, call.reply_to).replies >= most:
        raise Denied(413, Code.TOO_MANY_REPLIES, f"a message is answered at most {most} times, all attempts counted")


async def _session_is_own(asked: Asked, books: Books) -> None:
    """Push-object: Flower takes an empty session for any open one, of whomever."""
    call = asked.call
    if isinstance(call, ObjectPush) and not books.addressed.has_session(asked.site.name, call.run_id, call.session_id):
        raise Denied(403, Code.NOT_YOUR_SESSION, "no reply of this site opened that session; push the reply again")


async def _reply_has_room(asked: Asked, books: Books) -> None:
    """Push-object: bounded by the message, because a reply that is announced again opens a new session."""
    call, limits = asked.call, books.limits
    if not isinstance(call, ObjectPush):
        return
    taken = books.addressed.taken_with(asked.site.name, call.session_id)
    if taken.size_bytes + call.size_bytes > limits.reply_bytes or taken.objects >= limits.reply_objects:
        raise Denied(
            413,
            Code.REPLY_TOO_LARGE,
            f"in reply to one message at most {limits.reply_objects} objects of {limits.reply_bytes} bytes together are taken",
        )


CHECKS: tuple[Callable[[Asked, Books], Awaitable[None]], ...] = (
    _node_key_is_the_sites,
    _node_is_registered,
    _node_id_is_the_sites,
    _run_is_approved,
    _object_is_addressed,
    _message_is_own,
    _replies_are_few,
    _session_is_own,
    _reply_has_room,
)


async def may_be_delivered(delivery: Delivery, site: RegisteredSite, books: Books) -> bool:
    """Whether a message that Flower has for this node may be given to the site: it is for this node, of a run that the site approved."""
    if site.node_id is None or delivery.destination_node_id != site.node_id % UNSIGNED_64:
        return False
    return await books.is_approved(site.name, delivery.run_id)


def decoded_node_key(header: bytes | None) -> bytes:
    """The node key in the header. Raises Denied when there is none."""
    try:
        return base64.b64decode(header or b"", validate=True)
    except binascii.Error:
        raise Denied(400, Code.BAD_HEADERS, "the node key in the header is not base64") from None
