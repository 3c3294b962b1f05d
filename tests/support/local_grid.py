# SPDX-License-Identifier: Apache-2.0
"""A Grid without processes: each message is answered at once by a function of the site and the instruction."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from flwr.app import Message, RecordDict

from common.flower_compat.grids import NodeInfo
from common.flower_compat.identity import assume_server_identity
from common.flower_compat.messages import give_message_id
from common.protocol import Evaluated, Instruction

Behave = Callable[[str, Instruction], RecordDict]
"""What a site answers to an instruction that trains; evaluations are answered without a histogram."""


class LocalGrid:
    """What the round loop needs of a Grid. `online` may be changed while a run is under way; `asked` lists (round, site, trains)."""

    def __init__(self, sites: Iterable[str], behave: Behave) -> None:
        assume_server_identity(1)
        self.sites = tuple(sites)
        self._nodes = dict(enumerate(self.sites, start=1000))
        self.online = set(self._nodes.values())
        self.asked: list[tuple[int, str, bool]] = []
        self._behave = behave
        self._waiting: dict[str, Message] = {}

    def get_nodes(self) -> list[NodeInfo]:
        return [NodeInfo(node_id=node, name=name, status="online") for node, name in self._nodes.items() if name in self.online]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        waiting = {give_message_id(message): message for message in messages}
        self._waiting |= waiting
        return list(waiting)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        for identifier in list(message_ids):
            message = self._waiting.pop(identifier, None)
            if message is not None:
                yield self._answer(message)

    def _answer(self, message: Message) -> Message:
        site, instruction = self._nodes[message.metadata.dst_node_id], Instruction.from_records(message.content)
        self.asked.append((instruction.round, site, instruction.train))
        if instruction.train:
            return Message(self._behave(site, instruction), reply_to=message)
        return Message(Evaluated(instruction.run_id, instruction.round, site).to_records(), reply_to=message)
