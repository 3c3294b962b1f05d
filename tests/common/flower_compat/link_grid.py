# SPDX-License-Identifier: Apache-2.0
"""Flower's own link state in this process, with a clock that a test turns: nodes, heartbeats, messages and their ends as in a SuperLink.

Sites are played by a function that is called every `STEP_SECONDS` of that clock. Only what carries the bytes is left out.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from uuid import uuid4

import pytest
from flwr.app import Message, RecordDict
from flwr.app.message import message as message_module
from flwr.server.superlink.linkstate import LinkStateFactory, in_memory_linkstate
from flwr.server.superlink.linkstate import utils as linkstate_utils
from flwr.supercore.constant import NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from common.flower_compat.grids import NodeInfo
from common.flower_compat.identity import assume_server_identity

STEP_SECONDS = 5.0
HEARTBEAT_SECONDS = 30.0


class Clock:
    """Seconds since the start of a test."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._start = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)

    def monotonic(self) -> float:
        return self.seconds

    def now(self) -> datetime.datetime:
        return self._start + datetime.timedelta(seconds=self.seconds)


class LinkGrid:
    """What the round loop needs of a Grid; its `sleep` lets `STEP_SECONDS` pass and the sites act."""

    def __init__(self, sites: Iterable[str], act: Callable[[LinkGrid], None], patch: pytest.MonkeyPatch) -> None:
        self.clock, self._act = Clock(), act
        for module in (in_memory_linkstate, linkstate_utils, message_module):
            patch.setattr(module, "now", self.clock.now)
        for name in ("server.exchange.time", "server.replies.time"):
            patch.setattr(name, SimpleNamespace(monotonic=self.clock.monotonic, sleep=self.sleep))
        factory = LinkStateFactory(":flwr-in-memory:", NoOpFederationManager(), ObjectStoreFactory(":flwr-in-memory:"))
        self.state = factory.state()
        self.run_id = self.state.create_run(None, None, "", {}, NOOP_FEDERATION_ID, None, None, "flwr-serverapp")
        assume_server_identity(self.run_id)
        self.nodes = {name: self.state.create_node("owner", "owner", name.encode(), HEARTBEAT_SECONDS, name=name) for name in sites}
        self.pushed: list[tuple[float, str]] = []
        for name in self.nodes:
            self.beat(name)

    def sleep(self, seconds: float) -> None:
        """Time passes in larger steps than asked for."""
        self.clock.seconds += max(seconds, STEP_SECONDS)
        self._act(self)

    def beat(self, site: str) -> None:
        """One heartbeat of a site; Flower waits twice the interval for the next."""
        self.state.acknowledge_node_heartbeat(self.nodes[site], HEARTBEAT_SECONDS)

    def take(self, site: str) -> list[Message]:
        """The messages that a site has not had yet."""
        return self.state.get_message_ins(self.nodes[site], None)

    def reply(self, message: Message, content: RecordDict) -> bool:
        """A site's reply; whether the link takes it."""
        reply = Message(content, reply_to=message)
        reply.metadata.__dict__["_message_id"] = uuid4().hex
        reply.metadata.__dict__["_src_node_id"] = message.metadata.dst_node_id
        return self.state.store_message_res(reply) is not None

    def leave(self, site: str) -> None:
        """Take a site's node away, as after a revocation."""
        self.state.delete_node("owner", self.nodes[site])

    def get_nodes(self) -> list[NodeInfo]:
        return list(self.state.get_node_info(node_ids=list(self.state.get_nodes(self.run_id))))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [self._push(message) for message in messages]

    def _push(self, message: Message) -> str:
        names = {node: name for name, node in self.nodes.items()}
        self.pushed.append((self.clock.seconds, names[message.metadata.dst_node_id]))
        message.metadata.__dict__["_message_id"] = uuid4().hex
        return self.state.store_message_ins(message) or ""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        found = self.state.get_message_res(set(message_ids), self.run_id)
        self.state.delete_messages({message.metadata.reply_to_message_id for message in found})
        return found
