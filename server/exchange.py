# SPDX-License-Identifier: Apache-2.0
"""One instruction to every site of the run, and their replies as they come in, each checked before anybody sees it.

A reply that does not fit, an error and silence all become refusals, so the round loop only ever meets valid updates or a code.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from common.errors import FederationError, ProtocolError
from common.protocol import Instruction, Refusal, RefusalCode, Reply, read_reply, shapes_of
from server.receipts import Receipts

POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Node:
    """A site's connection as Flower knows it. On Ray nodes have no names; there a site's own word has to do."""

    node_id: int
    site: str
    named: bool = True


@dataclass(frozen=True)
class Answer:
    """A site's checked reply and how long it took. `reason` says why a reply was dropped, for the server's own log."""

    site: str
    reply: Reply
    seconds: float
    reason: str = ""


def wait_for_nodes(grid: Grid, expected: int, minimum: int, timeout_seconds: float) -> list[Node]:
    """All nodes once `expected` are online, or those that are there at the end of the time. Raises FederationError below `minimum`."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        nodes = sorted(
            (Node(info.node_id, info.name or f"node-{info.node_id}", bool(info.name)) for info in grid.get_nodes()),
            key=lambda node: node.site,
        )
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
) -> Iterator[Answer]:
    """Send the instruction to all nodes and yield exactly one answer for each, in the order of arrival.

    `counts_shape` is that of the histogram that an evaluation has to bring, None for none. `receipts` gives each site the receipt for its
    ledger, and notes the ledger's new head from each good reply.
    """
    started = time.monotonic()
    pending = _send(grid, nodes, instruction, timeout_seconds, receipts)
    while pending and time.monotonic() - started < timeout_seconds:
        replies = list(grid.pull_messages(list(pending)))
        for reply in replies:
            node = pending.pop(reply.metadata.reply_to_message_id, None)
            if node is not None:
                answer = _check(node, reply, instruction, time.monotonic() - started, counts_shape)
                if receipts is not None and not isinstance(answer.reply, Refusal):
                    receipts.take(node.site, reply.content)
                yield answer
        if not replies:
            time.sleep(POLL_SECONDS)
    for node in pending.values():
        yield Answer(node.site, Refusal(RefusalCode.NO_REPLY, node.site), timeout_seconds, f"no reply within {timeout_seconds:.0f} s")


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
