# SPDX-License-Identifier: Apache-2.0
"""One instruction to every site of the run, and their replies as they come in, each checked (`server.replies`) before anybody sees it.

A reply that does not fit, an error and silence all become refusals, so the round loop only ever meets valid updates or a code.

A site that loses its connection for longer than Flower's patience (60 s) also loses the message that it works on. It is asked again
as soon as it is back: it then sends what it has stored, or trains under the reservation that it has. So is one whose daemon ended while
it worked on the message, and that says so before it stops, or when it is back. Who is not back within half a minute is given up for this
round, sooner if it may not come back. How long a site works makes no difference: its heartbeats go on meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from common.errors import FederationError
from common.flower_compat.grids import NodeInfo
from common.protocol import Instruction, Shapes
from server.receipts import Receipts
from server.replies import Answer, Asked, Node, has_no_heartbeat, was_interrupted
from server.statements import Statements

__all__ = ["Answer", "Node", "Pick", "Watch", "every_node", "exchange", "wait_for_nodes"]

POLL_SECONDS = 0.02
LOOK_SECONDS = 1.0
AWAY_SECONDS = 30.0
"""How long a round waits for a site without heartbeat to come back; Flower has then waited for a minute already."""
MOST_ASKS = 5
"""A site whose connection comes and goes is asked so many times in a round."""

Pick = Callable[[Iterable[NodeInfo]], list[Node]]
"""Which of the nodes that are online take part, and as which site."""


def every_node(online: Iterable[NodeInfo]) -> list[Node]:
    """All of them, under the names that they have."""
    return [Node(info.node_id, info.name or f"node-{info.node_id}", bool(info.name)) for info in online]


@dataclass(frozen=True)
class Watch:
    """How an exchange looks after sites that are away: who takes part, who may come back, and who hears of it.

    `away` hears of a site that has no heartbeat, `interrupted` of one whose daemon has ended, `asked_again` of one that got its message
    once more.
    """

    pick: Pick = every_node
    may_return: Callable[[str], bool] = lambda _: True
    away: Callable[[str], None] = lambda _: None
    interrupted: Callable[[str], None] = lambda _: None
    asked_again: Callable[[str], None] = lambda _: None


def wait_for_nodes(
    grid: Grid, expected: int, minimum: int, timeout_seconds: float, pick: Pick = every_node, patience_seconds: float | None = None
) -> list[Node]:
    """All nodes once `expected` are online, or those that are there at the end of the time. Raises FederationError below `minimum`.

    With `patience_seconds`, `minimum` nodes are enough after so long.
    """
    started = time.monotonic()
    while True:
        nodes = sorted(pick(grid.get_nodes()), key=lambda node: node.site)
        waited_seconds = time.monotonic() - started
        enough = minimum if patience_seconds is not None and waited_seconds >= patience_seconds else expected
        if len(nodes) >= enough or waited_seconds >= timeout_seconds:
            break
        time.sleep(POLL_SECONDS)
    if len(nodes) < minimum:
        raise FederationError(
            f"{len(nodes)} sites are online after {timeout_seconds:.0f} s, the study needs {minimum}; start them and resume"
        )
    return nodes


def exchange(
    grid: Grid,
    nodes: Sequence[Node],
    instruction: Instruction,
    timeout_seconds: float,
    counts_shape: tuple[int, ...] | None = None,
    receipts: Receipts | None = None,
    statements: Statements | None = None,
    watch: Watch | None = None,
    tables: Shapes | None = None,
) -> Iterator[Answer]:
    """Send the instruction to all nodes and yield exactly one answer for each, in the order of arrival.

    `counts_shape` is that of the histogram that an evaluation has to bring, None for none; `tables` are those of a survey.
    `receipts` gives each site the receipt for its
    ledger, and notes the ledger's new head from each good reply. With `statements` a reply counts only with the site's own signature.
    One reply is in memory at a time, if whoever reads the answers lets go of each before the next.
    """
    asked = Asked(instruction, time.monotonic(), counts_shape, receipts, statements, tables)
    post = _Post(grid, asked, timeout_seconds, watch or Watch())
    post.send(nodes)
    _ = asked.expected  # worked out while the sites are at work
    while post.is_waiting:
        is_empty = True
        for reply in grid.pull_messages(list(post.pending)):
            is_empty = False
            node = post.taken(reply)
            if node is not None:
                answer = asked.answer(node, reply)
                del reply
                if not post.has_to_ask_again(node, answer):
                    yield answer
                del answer
        post.look()
        if is_empty and post.is_waiting:
            time.sleep(POLL_SECONDS)
    yield from post.silent()


@dataclass
class _Away:
    """A site without heartbeat: since when (monotonic seconds), and whether it may come back."""

    node: Node
    since: float
    may_return: bool = True

    @property
    def is_given_up(self) -> bool:
        return not self.may_return or time.monotonic() - self.since >= AWAY_SECONDS


@dataclass
class _Post:
    """The messages of one exchange that are out: who is waited for under which message id, who is away, who was asked how often."""

    grid: Grid
    asked: Asked
    timeout_seconds: float
    watch: Watch
    pending: dict[str, Node] = field(default_factory=dict)
    unreachable: list[Node] = field(default_factory=list)
    away: dict[str, _Away] = field(default_factory=dict)
    asks: dict[str, int] = field(default_factory=dict)
    look_at: float = 0.0

    @property
    def seconds_left(self) -> float:
        return self.asked.started + self.timeout_seconds - time.monotonic()

    @property
    def is_waiting(self) -> bool:
        """Whether any answer may still come."""
        return self.seconds_left > 0 and (bool(self.pending) or not all(away.is_given_up for away in self.away.values()))

    def send(self, nodes: Sequence[Node]) -> None:
        """Push one message a node, all with the same tensors."""
        instruction, receipts = self.asked.instruction, self.asked.receipts
        kind = MessageType.TRAIN if instruction.train else MessageType.EVALUATE
        records = instruction.to_records()
        contents = [records if receipts is None else receipts.attach(node.site, records) for node in nodes]
        messages = [
            Message(content, node.node_id, kind, ttl=max(1.0, self.seconds_left), group_id=str(instruction.round))
            for content, node in zip(contents, nodes, strict=True)
        ]
        identifiers = list(self.grid.push_messages(messages))
        if len(identifiers) != len(nodes):
            raise FederationError(f"only {len(identifiers)} of {len(nodes)} sites could be reached; check the connection and resume")
        for identifier, node in zip(identifiers, nodes, strict=True):
            self.asks[node.site] = self.asks.get(node.site, 0) + 1
            if identifier:
                self.pending[identifier] = node
            else:
                self.unreachable.append(node)

    def taken(self, reply: Message) -> Node | None:
        """Whose answer a reply is; None if nobody waits for it, or if it only says that the site is away."""
        node = self.pending.pop(reply.metadata.reply_to_message_id, None)
        if node is None or not has_no_heartbeat(reply) or self.asks[node.site] >= MOST_ASKS:
            return node
        self._wait_for(node)
        self.watch.away(node.site)
        return None

    def has_to_ask_again(self, node: Node, answer: Answer) -> bool:
        """Whether an answer only says that the site's daemon has ended; then the site is asked again as soon as it is there."""
        if not was_interrupted(answer.reply) or self.asks[node.site] >= MOST_ASKS:
            return False
        self._wait_for(node)
        self.watch.interrupted(node.site)
        return True

    def _wait_for(self, node: Node) -> None:
        self.away[node.site] = _Away(node, time.monotonic(), self.watch.may_return(node.site))

    def look(self) -> None:
        """Ask who is back again, once a second while somebody is away."""
        if not self.away or time.monotonic() < self.look_at:
            return
        self.look_at = time.monotonic() + LOOK_SECONDS
        back = [node for node in self.watch.pick(self.grid.get_nodes()) if node.site in self.away]
        for node in back:
            del self.away[node.site]
            self.watch.asked_again(node.site)
        if back:
            self.send(back)
        for site, away in self.away.items():
            away.may_return = away.may_return and self.watch.may_return(site)

    def silent(self) -> Iterator[Answer]:
        """The answers of those who gave none, with the reason."""
        for node in self.unreachable:
            yield self.asked.silence(node, "not connected: its message could not be sent")
        for away in self.away.values():
            may_return = "and it was not back in time" if away.may_return else "and it may not take part any more"
            yield self.asked.silence(away.node, f"no heartbeat: the connection is lost, {may_return}")
        for node in self.pending.values():
            yield self.asked.silence(node, f"no answer in time: nothing came within {self.timeout_seconds:.0f} s")
