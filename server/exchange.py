# SPDX-License-Identifier: Apache-2.0
"""One instruction to every site of the run, and their replies as they come in, each checked before anybody sees it.

A reply that does not fit, an error and silence all become refusals, so the round loop only ever meets valid updates or a code.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from common.errors import FederationError, ProtocolError
from common.flower_compat.grids import NodeInfo
from common.protocol import Instruction, Refusal, RefusalCode, Reply, read_reply, shapes_of
from server.egress_receipts import Expected
from server.receipts import Receipts
from server.statements import Statements, Witnessed

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Node:
    """A site's connection as Flower knows it. On Ray nodes have no names; there a site's own word has to do."""

    node_id: int
    site: str
    named: bool = True


@dataclass(frozen=True)
class Answer:
    """A site's checked reply and how long it took. `reason` says why a reply was dropped, for the server's own log.

    `bytes_down` and `bytes_up` count the tensors of the message and of the reply, `witnessed` is what the site signed about the latter.
    """

    site: str
    reply: Reply
    seconds: float
    reason: str = ""
    bytes_down: int = 0
    bytes_up: int = 0
    witnessed: Witnessed | None = field(default=None, repr=False)


Pick = Callable[[Iterable[NodeInfo]], list[Node]]
"""Which of the nodes that are online take part, and as which site."""


def every_node(online: Iterable[NodeInfo]) -> list[Node]:
    """All of them, under the names that they have."""
    return [Node(info.node_id, info.name or f"node-{info.node_id}", bool(info.name)) for info in online]


def wait_for_nodes(grid: Grid, expected: int, minimum: int, timeout_seconds: float, pick: Pick = every_node) -> list[Node]:
    """All nodes once `expected` are online, or those that are there at the end of the time. Raises FederationError below `minimum`."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        nodes = sorted(pick(grid.get_nodes()), key=lambda node: node.site)
        if len(nodes) >= expected or time.monotonic() >= deadline:
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
) -> Iterator[Answer]:
    """Send the instruction to all nodes and yield exactly one answer for each, in the order of arrival.

    `counts_shape` is that of the histogram that an evaluation has to bring, None for none. `receipts` gives each site the receipt for its
    ledger, and notes the ledger's new head from each good reply. With `statements` a reply counts only with the site's own signature.
    One reply is in memory at a time, if whoever reads the answers lets go of each before the next.
    """
    started = time.monotonic()
    pending = _send(grid, nodes, instruction, timeout_seconds, receipts)
    asked = _Asked(instruction, started, counts_shape, receipts, statements, statements.expected(instruction) if statements else None)
    while pending and time.monotonic() - started < timeout_seconds:
        is_empty = True
        for reply in grid.pull_messages(list(pending)):
            is_empty = False
            node = pending.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                answer = asked.answer(node, reply)
                del reply
                yield answer
                del answer
        if is_empty:
            time.sleep(POLL_SECONDS)
    for node in pending.values():
        refusal = Refusal(RefusalCode.NO_REPLY, node.site)
        yield Answer(node.site, refusal, timeout_seconds, f"no reply within {timeout_seconds:.0f} s", asked.size_bytes)


@dataclass(frozen=True)
class _Asked:
    """An instruction that is out, and what is done with each reply to it; `expected` is what statements about them have to be about."""

    instruction: Instruction
    started: float
    counts_shape: tuple[int, ...] | None
    receipts: Receipts | None
    statements: Statements | None
    expected: Expected | None

    @property
    def size_bytes(self) -> int:
        return sum(array.nbytes for array in self.instruction.model.values())

    def answer(self, node: Node, reply: Message) -> Answer:
        """Check one reply, and its statement where there has to be one; note the head of the ledger that came with a good one."""
        answer = _check(node, reply, self.instruction, time.monotonic() - self.started, self.counts_shape)
        answer = replace(answer, bytes_down=self.size_bytes, bytes_up=_bytes_of(reply))
        if self.statements is not None and self.expected is not None and reply.has_content():
            answer = _witnessed(answer, self.statements, node.site, reply.content, self.expected)
        if self.receipts is not None and not isinstance(answer.reply, Refusal):
            self.receipts.take(node.site, reply.content)
        return answer


def _witnessed(answer: Answer, statements: Statements, site: str, records: RecordDict, expected: Expected) -> Answer:
    """The answer with what the site signed about it; an update without that is dropped, a refusal stays what it is."""
    try:
        return replace(answer, witnessed=statements.take(site, records, expected))
    except ProtocolError as error:
        if isinstance(answer.reply, Refusal):
            return replace(answer, reason=f"{answer.reason}; {error}" if answer.reason else str(error))
        return replace(answer, site=site, reply=Refusal(RefusalCode.REPLY_INVALID, site), reason=str(error))


def _bytes_of(reply: Message) -> int:
    """Bytes of the tensors in a reply."""
    if not reply.has_content():
        return 0
    records = [record for record in reply.content.values() if isinstance(record, ArrayRecord)]
    return sum(len(array.data) for record in records for array in record.values())


def _send(
    grid: Grid, nodes: Sequence[Node], instruction: Instruction, timeout_seconds: float, receipts: Receipts | None
) -> dict[str, Node]:
    """Push one message a node, all with the same tensors; returns who is waited for, by message id."""
    kind = MessageType.TRAIN if instruction.train else MessageType.EVALUATE
    records = instruction.to_records()
    contents = [records if receipts is None else receipts.attach(node.site, records) for node in nodes]
    messages = [
        Message(content, node.node_id, kind, ttl=timeout_seconds, group_id=str(instruction.round))
        for content, node in zip(contents, nodes, strict=True)
    ]
    identifiers = list(grid.push_messages(messages))
    if len(identifiers) != len(nodes):
        raise FederationError(f"only {len(identifiers)} of {len(nodes)} sites could be reached; check the connection and resume")
    return dict(zip(identifiers, nodes, strict=True))


def _check(node: Node, message: Message, instruction: Instruction, seconds: float, counts_shape: tuple[int, ...] | None) -> Answer:
    if message.has_error():
        return Answer(node.site, Refusal(RefusalCode.NO_REPLY, node.site), seconds, f"Flower error {message.error.code}")
    try:
        reply = read_reply(
            message.content,
            run_id=instruction.run_id,
            round_number=instruction.round,
            shapes=shapes_of(instruction.model),
            counts_shape=counts_shape,
        )
    except ProtocolError as error:
        return Answer(node.site, Refusal(RefusalCode.REPLY_INVALID, node.site), seconds, str(error))
    if node.named and reply.site not in ("", node.site):
        return Answer(node.site, Refusal(RefusalCode.REPLY_INVALID, node.site), seconds, f"it calls itself {reply.site}")
    return Answer(reply.site or node.site, reply, seconds)
