# SPDX-License-Identifier: Apache-2.0
"""A Flower Grid in this process: the real ServerApp and ClientApp, worker processes, no sockets and no Ray.

Every site is bound to one worker, every worker to one thread of the parent that feeds it. A worker that dies answers the message that
it had with the refusal WORKER_LOST and is started again for the next one. A reply is kept until it is pulled, and is given out once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType

from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid

from client.worker import Parts, Worker, WorkerLost, WorkerSettings
from common.flower_compat import identity
from common.flower_compat import messages as codec
from common.flower_compat.grids import NodeInfo, Run
from common.protocol import Refusal, RefusalCode

FIRST_NODE_ID = 1000
FLOWER_RUN_ID = 1
PULL_WAIT_SECONDS = 0.05
STOP_GRACE_SECONDS = 0.5


class InProcessGrid(Grid):
    """Nodes `FIRST_NODE_ID`… stand for `sites`, in order; `partition-id` counts them from 0. Use it in a `with` block."""

    def __init__(self, sites: Sequence[str], settings: WorkerSettings, workers: int = 1) -> None:
        identity.assume_server_identity(FLOWER_RUN_ID)
        self._run = identity.empty_run(FLOWER_RUN_ID)
        self._sites = {FIRST_NODE_ID + number: name for number, name in enumerate(sites)}
        self._contexts = {node: codec.context_to_bytes(_context(node)) for node in self._sites}
        self._replies: dict[str, _Reply] = {}
        self._arrival = threading.Condition()
        self._feeders = [_Feeder(self, settings) for _ in range(min(workers, len(sites)))]

    def __enter__(self) -> InProcessGrid:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all workers; messages that wait are dropped."""
        for feeder in self._feeders:
            feeder.stop()

    @property
    def worker_process_ids(self) -> list[int | None]:
        """Process id of each worker, None before its first message."""
        return [feeder.worker.process_id for feeder in self._feeders]

    def set_run(self, run: Run) -> None:
        """Set the run that messages belong to."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that messages belong to."""
        return self._run

    def create_message(self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None) -> Message:
        """Flower's older way to make a message; the same as `Message(...)`."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """All nodes; in a simulation every site is online."""
        return list(self._sites)

    def get_nodes(self) -> list[NodeInfo]:
        """All nodes with their sites' names."""
        return [NodeInfo(node_id=node, name=name, status="online") for node, name in self._sites.items()]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Queue messages for their nodes' workers; a message to an unknown node is not accepted and gets no id."""
        return [self._push(message) for message in messages if message.metadata.dst_node_id in self._sites]

    def _push(self, message: Message) -> str:
        identifier = codec.give_message_id(message)
        position = list(self._sites).index(message.metadata.dst_node_id)
        self._feeders[position % len(self._feeders)].put(message)
        return identifier

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Replies that are there, each once; waits a moment if there is none yet."""
        wanted = set(message_ids)
        with self._arrival:
            if not wanted & self._replies.keys():
                self._arrival.wait(PULL_WAIT_SECONDS)
            arrived = [self._replies.pop(identifier).content for identifier in wanted & self._replies.keys()]
        return [reply if isinstance(reply, Message) else codec.message_from_parts(reply) for reply in arrived]

    @property
    def kept_replies(self) -> int:
        """How many replies wait to be pulled; those whose message has expired are dropped with the next one that arrives."""
        return len(self._replies)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Push and pull until all replies are there or `timeout` seconds are over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        waiting = set(self.push_messages(messages))
        replies: list[Message] = []
        while waiting and (deadline is None or time.monotonic() < deadline):
            arrived = self.pull_messages(waiting)
            replies += arrived
            waiting -= {reply.metadata.reply_to_message_id for reply in arrived}
        return replies

    def context_of(self, message: Message) -> bytes:
        """The context of the node that a message is for. Each node has one worker, so one thread asks for it."""
        return self._contexts[message.metadata.dst_node_id]

    def deliver(self, message: Message, answer: tuple[bytes, Parts] | None) -> None:
        """Keep a worker's answer (the node's new context, the reply) until it is pulled; None says that the worker died."""
        node = message.metadata.dst_node_id
        if answer is None:
            reply: Parts | Message = Message(Refusal(RefusalCode.WORKER_LOST, self._sites[node]).to_records(), reply_to=message)
        else:
            self._contexts[node], reply = answer
        with self._arrival:
            self._drop_expired()
            self._replies[message.metadata.message_id] = _Reply(reply, _deadline(message))
            self._arrival.notify_all()

    def _drop_expired(self) -> None:
        """Forget replies that came too late: nobody pulls them any more, and with every round there would be more of them."""
        now = time.time()
        for identifier in [identifier for identifier, reply in self._replies.items() if reply.deadline < now]:
            del self._replies[identifier]


@dataclass(frozen=True)
class _Reply:
    """A reply, as bytes or as the refusal for a lost worker, and the time (seconds since the epoch) until which somebody waits for it."""

    content: Parts | Message
    deadline: float


@dataclass(frozen=True)
class _Request:
    """A message and its bytes."""

    message: Message
    content: Parts


class _Feeder:
    """One worker and the thread that feeds it. While the worker is busy the next message is made ready."""

    def __init__(self, grid: InProcessGrid, settings: WorkerSettings) -> None:
        self.worker = Worker(settings)
        self._grid = grid
        self._queue: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._feed, name="wardround-feeder", daemon=True)
        self._thread.start()

    def put(self, message: Message) -> None:
        self._queue.put(message)

    def _feed(self) -> None:
        with suppress(EOFError, OSError):  # only to save time: the first message starts it again and reports a failure
            self.worker.start()
        request = self._next()
        while request is not None and not self._stopping.is_set():
            request = self._exchange(request)
        self.worker.stop()

    def _next(self) -> _Request | None:
        """The next message, ready to send; waits for one. None at the end."""
        message = self._queue.get()
        return None if message is None else _Request(message, codec.message_to_parts(message))

    def _exchange(self, request: _Request) -> _Request | None:
        """Let the worker answer one message; returns the next one."""
        following, has_following = None, False
        if expired(request.message):
            return self._next()
        try:
            self.worker.send(self._grid.context_of(request.message), request.content)
            if not self._queue.empty():
                following, has_following = self._next(), True
            self._grid.deliver(request.message, self.worker.receive())
        except WorkerLost:
            self._grid.deliver(request.message, None)
        return following if has_following else self._next()

    def stop(self) -> None:
        """End worker and thread; a message that is still being answered is cut off after a moment."""
        self._stopping.set()
        self._queue.put(None)
        self._thread.join(STOP_GRACE_SECONDS)
        while self._thread.is_alive():
            self.worker.kill()
            self._thread.join(STOP_GRACE_SECONDS)


def expired(message: Message) -> bool:
    """Whether nobody waits for the answer to a message any more; it must then not be worked on, because training costs privacy."""
    return time.time() > _deadline(message)


def _deadline(message: Message) -> float:
    return message.metadata.created_at + message.metadata.ttl


def _context(node: int) -> Context:
    return Context(FLOWER_RUN_ID, node, {"partition-id": node - FIRST_NODE_ID}, RecordDict(), {})
