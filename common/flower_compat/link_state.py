# SPDX-License-Identifier: Apache-2.0
"""Flower's state of nodes, runs and messages, without three things that it does and nobody here asks for.

It gives a reply out as soon as it is announced, and forgets what the reply is to: its reader then waits for the parts, and hears no other
site; and a site whose connection breaks cannot send it again. Here a reply is given out when all of it is there. One that broke off
is forgotten when Flower's time for it is up, or when its site sends another in its place, and may come again.

It adds the bytes of every object to the run's row, a transaction of its own each time: the run store counts what travels, by site and way.
And it looks for tasks whose time is up, two more statements under the write lock, before it says how a run stands: here that look is as
fresh as `LOOK_SECONDS`, beside leases of half a minute.
"""

from __future__ import annotations

import threading
import time
from functools import partial
from typing import Any, Final

from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.server.superlink.linkstate import SqlLinkState
from flwr.supercore.date import now
from flwr.supercore.state.schema.corestate_models import ObjectPushSession, ObjectPushSessionRoot
from flwr.supercore.state.schema.linkstate_models import MessageRes
from flwr.supercore.utils import uint64_to_int64
from sqlalchemy import select
from typing_extensions import override

from common.flower_compat.large_objects import IN_A_FILE
from common.flower_compat.object_store import FileObjectStore
from common.flower_compat.superlink_waiting import Bell, Bells

LOOK_SECONDS: Final = 0.5
_BEGUN: Final = (
    select(MessageRes.reply_to_message_id, ObjectPushSession.session_id, ObjectPushSession.expires_at)
    .join(ObjectPushSessionRoot, ObjectPushSessionRoot.root_object_id == MessageRes.message_id)
    .join(ObjectPushSession, ObjectPushSession.session_id == ObjectPushSessionRoot.session_id)
    .where(ObjectPushSession.pending_count > 0)
)


class LeanLinkState(SqlLinkState):
    """The state of the SuperLink that we run. Of `bells` one is rung whenever a message is complete, and can be pulled."""

    def __init__(self, *arguments: Any, bells: Bells) -> None:  # Flower's own arguments, handed on
        super().__init__(*arguments)
        self._bells = bells
        self._looked = -LOOK_SECONDS
        self._announcing = threading.Lock()
        """So that no reply is announced between the look at what has begun to come and the giving out."""
        self._ways: dict[str, Bell] = {}
        self._closed = threading.local()

    @override
    def store_message_and_object_tree(self, message: Message, object_tree: ObjectTree, session_id: str) -> tuple[bool, list[str]]:
        """As Flower's own; of what a run sends, the parts that it has put into their files beforehand are not asked for.

        The message's own object always is: with the last part a push ends, and the same push may bring further messages.
        """
        is_reply = bool(message.metadata.reply_to_message_id)
        way = self._bells.runs if is_reply else self._bells.sites
        with self._announcing:
            if is_reply:
                self._forget_half_of(message)
            stored, missing = super().store_message_and_object_tree(message, object_tree, session_id)
        if missing:
            self._ways[session_id] = way
        elif stored:
            way.ring()
        if is_reply:
            return stored, missing
        run_id, own = message.metadata.run_id, object_tree.object_id
        return stored, [one for one in missing if one == own or not self._is_there(run_id, session_id, one)]

    def _forget_half_of(self, reply: Message) -> None:
        """Make room for a reply of a site whose daemon died in the middle of sending another to the same message."""
        facts = reply.metadata
        is_its_own = MessageRes.src_node_id == uint64_to_int64(facts.src_node_id)
        is_another = MessageRes.message_id != facts.message_id
        with self.session() as session:
            begun = session.execute(_BEGUN.where(MessageRes.reply_to_message_id == facts.reply_to_message_id, is_its_own, is_another))
            for _, push, _ in begun.all():
                self._cleanup_push_session(push, cleanup_messages=True)

    def _is_there(self, run_id: int, session_id: str, object_id: str) -> bool:
        """Whether an object that was announced lies in its file already; then it counts as sent."""
        if not (isinstance(self.object_store, FileObjectStore) and self.object_store.has_file(object_id)):
            return False
        return self.store_object(run_id, session_id, object_id, IN_A_FILE)

    @override
    def store_object(self, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        """As Flower's own."""
        self._closed.ways = set()
        stored = super().store_object(run_id, session_id, object_id, object_content)
        if stored:
            for way in self._closed.ways:
                way.ring()
        return stored

    @override
    def get_message_res(self, message_ids: set[str], run_id: int) -> list[Message]:
        """As Flower's own, for the replies that are there whole."""
        with self._announcing:
            return super().get_message_res(message_ids - self._arriving(message_ids), run_id)

    def _arriving(self, message_ids: set[str]) -> set[str]:
        """Those of the messages whose reply has begun to come, and of which parts are missing."""
        with self.session() as session:
            begun = session.execute(_BEGUN.where(MessageRes.reply_to_message_id.in_(message_ids))).all()
            broken_off = {push for _, push, until in begun if until <= now()}
            for push in broken_off:
                self._cleanup_push_session(push, cleanup_messages=True)
        return {str(answered) for answered, push, _ in begun if push not in broken_off}

    @override
    def _cleanup_push_session(self, session_id: str, *, cleanup_messages: bool) -> None:
        super()._cleanup_push_session(session_id, cleanup_messages=cleanup_messages)
        way = self._ways.pop(session_id, None)
        ways = {self._bells.sites, self._bells.runs} if way is None else {way}
        self._closed.ways = getattr(self._closed, "ways", set()) | ways

    @override
    def store_traffic(self, run_id: int, *, bytes_sent: int, bytes_recv: int) -> None:
        """Nothing: see above."""

    @override
    def _cleanup_expired_task_tokens(self) -> None:
        """End the tasks whose holder was not heard of, unless that was looked for a moment ago."""
        moment = time.monotonic()
        if moment - self._looked >= LOOK_SECONDS:
            super()._cleanup_expired_task_tokens()
            self._looked = moment


def use_lean_state(bells: Bells) -> None:
    """Make Flower's next application keep its state in a `LeanLinkState`."""
    from flwr.server.superlink.linkstate import linkstate_factory

    vars(linkstate_factory)["SqlLinkState"] = partial(LeanLinkState, bells=bells)
