# SPDX-License-Identifier: Apache-2.0
"""One reply, checked before anybody sees it: an update that fits, an evaluation that fits, or a code.

Flower's own error                  NO_REPLY: the site has no heartbeat, its message is gone, or its app raised an error
bytes that cannot be read           REPLY_INVALID
run, round, names, types, values    `common.protocol.read_reply`, else REPLY_INVALID
`num-examples`                      1: a patient count has no business in a reply, else REPLY_INVALID
another site's name                 REPLY_INVALID
the site's signature                where the run has keys, else REPLY_INVALID
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from functools import cached_property

from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict

from common.errors import ProtocolError
from common.protocol import Instruction, Refusal, RefusalCode, Reply, Shapes, read_reply, shapes_of
from server.egress_receipts import Expected
from server.receipts import Receipts
from server.statements import Statements, Witnessed

EXAMPLES = {"num-examples": 1}
NODE_UNAVAILABLE = 5
MESSAGE_UNAVAILABLE = 3
LINK_SAYS = "Error: "
"""How the SuperLink's own words on a message that is gone begin; ours on a reply that cannot be read begin with the kind of error."""
NOT_THE_SITES_FAULT = ("ObjectPullError", "MemoryError")
ERRORS = {1: "its app could not be loaded", 2: "its app raised an error", 3: "its message was taken back or has expired"}
ERRORS |= {4: "its reply has expired", NODE_UNAVAILABLE: "no heartbeat", 8: "its app crashed"}


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


@dataclass(frozen=True)
class Asked:
    """An instruction that is out, and what is done with each reply to it.

    `started` in monotonic seconds; `counts_shape` is that of the histogram that an evaluation has to bring, None for none; `tables` are
    those that a survey has to bring.
    """

    instruction: Instruction
    started: float
    counts_shape: tuple[int, ...] | None
    receipts: Receipts | None
    statements: Statements | None
    tables: Shapes | None = None

    @cached_property
    def expected(self) -> Expected | None:
        """What statements about the replies have to be about. Takes the digest of the model: best while the sites are at work."""
        return None if self.statements is None else self.statements.expected(self.instruction)

    @property
    def size_bytes(self) -> int:
        """Bytes of tensors in the message."""
        return sum(array.nbytes for array in self.instruction.model.values())

    def answer(self, node: Node, reply: Message) -> Answer:
        """Check one reply, and its statement where there has to be one; note the head of the ledger that came with a good one.

        Raises StorageError when a hospital's statement or head cannot be kept; the site sends the same reply again when it is asked again.
        """
        seconds = time.monotonic() - self.started
        if reply.has_error():
            return replace(_error(node, reply, seconds), bytes_down=self.size_bytes)
        answer = self._check(node, reply.content, seconds)
        answer = replace(answer, bytes_down=self.size_bytes, bytes_up=_bytes_of(reply.content))
        if self.statements is not None and self.expected is not None:
            answer = _witnessed(answer, self.statements, node.site, reply.content, self.expected)
        if self.receipts is not None and not isinstance(answer.reply, Refusal):
            self.receipts.take(node.site, reply.content)
            if self.statements is not None:  # a real hospital: its head must last, even if this server dies before the round's end
                self.receipts.save()
        return answer

    def _check(self, node: Node, records: RecordDict, seconds: float) -> Answer:
        def invalid(reason: str) -> Answer:
            return Answer(node.site, Refusal(RefusalCode.REPLY_INVALID, node.site), seconds, reason)

        asked = self.instruction
        try:
            reply = read_reply(
                records,
                run_id=asked.run_id,
                round_number=asked.round,
                shapes=shapes_of(asked.model),
                counts_shape=self.counts_shape,
                tables=self.tables,
            )
        except ProtocolError as error:
            return invalid(str(error))
        if node.named and reply.site not in ("", node.site):
            return invalid(f"it calls itself {reply.site}")
        if not isinstance(reply, Refusal) and (problem := _metrics_problem(records)):
            return invalid(problem)
        return Answer(reply.site or node.site, reply, seconds)

    def silence(self, node: Node, reason: str) -> Answer:
        """The answer of a site that gave none."""
        return Answer(node.site, Refusal(RefusalCode.NO_REPLY, node.site), time.monotonic() - self.started, reason, self.size_bytes)


def was_interrupted(reply: Reply) -> bool:
    """Whether a site says that its daemon ended while it worked on the message, or was stopped: it may be asked again."""
    return isinstance(reply, Refusal) and reply.code is RefusalCode.INTERRUPTED


def has_no_heartbeat(reply: Message) -> bool:
    """Whether the SuperLink answered in place of a site that it does not hear; the message is then gone."""
    return reply.has_error() and reply.error.code == NODE_UNAVAILABLE and reply.metadata.src_node_id == reply.metadata.dst_node_id


def _error(node: Node, reply: Message, seconds: float) -> Answer:
    """What an error reply means. Its text is only looked at where it is the SuperLink's or our grid's own, never repeated from a site."""
    code, text = reply.error.code, reply.error.reason or ""
    is_our_word = reply.metadata.src_node_id == reply.metadata.dst_node_id
    if is_our_word and code == MESSAGE_UNAVAILABLE and not text.startswith(LINK_SAYS):
        refusal = RefusalCode.NO_REPLY if text.startswith(NOT_THE_SITES_FAULT) else RefusalCode.REPLY_INVALID
        return Answer(node.site, Refusal(refusal, node.site), seconds, f"the reply cannot be read ({text[:120]})")
    return Answer(node.site, Refusal(RefusalCode.NO_REPLY, node.site), seconds, ERRORS.get(code, f"Flower error {code}"))


def _witnessed(answer: Answer, statements: Statements, site: str, records: RecordDict, expected: Expected) -> Answer:
    """The answer with what the site signed about it; an update without that is dropped, a refusal stays what it is."""
    try:
        return replace(answer, witnessed=statements.take(site, records, expected))
    except ProtocolError as error:
        if isinstance(answer.reply, Refusal):
            return replace(answer, reason=f"{answer.reason}; {error}" if answer.reason else str(error))
        return replace(answer, site=site, reply=Refusal(RefusalCode.REPLY_INVALID, site), reason=str(error))


def _bytes_of(records: RecordDict) -> int:
    """Bytes of the tensors in a reply."""
    tensors = [record for record in records.values() if isinstance(record, ArrayRecord)]
    return sum(len(array.data) for record in tensors for array in record.values())


def _metrics_problem(records: RecordDict) -> str | None:
    """A site's weight is public and the study's; what a reply says about itself must not weigh anything."""
    metrics = records.get("metrics")
    if not isinstance(metrics, MetricRecord):
        return "reply: has no record 'metrics'"
    if dict(metrics) != EXAMPLES or type(metrics["num-examples"]) is not int:
        return f"reply: metrics are {str(dict(metrics))[:80]}, expected num-examples 1 and nothing else"
    return None
