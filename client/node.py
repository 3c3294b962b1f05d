# SPDX-License-Identifier: Apache-2.0
"""The node loop: take a message, answer it, send the answer; one at a time.

A message that has expired is not worked on, because training costs privacy. One that was in hand when the daemon died is answered at the
next start with a code that says so: whoever sent it may send it again, and gets what was stored, or a training under the same charge.

While nothing happens the loop asks ever less often: every 0.05 s after a message, every 0.2 s in the next ten seconds, every second soon
after, every 2 s after ten idle minutes; then the training process is ended too, and its memory is free for others.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from client.answering import Answer, Desk
from client.daemon_log import DaemonLog
from client.egress import Incoming
from client.link import GaveUp, Link, MessageCalls, Stopped
from client.site_worker import SiteWorker
from client.status import Stage, StatusBoard
from common.errors import ProtocolError, RefusedError, StorageError, WardroundError
from common.federation import NO_MESSAGE, NO_RUN
from common.flower_compat.fleet import Interrupted, Pulled, RunOver, answer_to
from common.protocol import RefusalCode

SHORTEST_POLL_SECONDS: Final = 0.05
BUSY_POLL_SECONDS: Final = 0.2
BUSY_SECONDS: Final = 10.0
POLL_SECONDS: Final = 1.0
IDLE_POLL_SECONDS: Final = 2.0
IDLE_SECONDS: Final = 600.0
STORAGE_RETRY_SECONDS: Final = 15.0


class Pace:
    """How long to wait before asking again. `clock` gives monotonic seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._worked_at = clock()
        self._wait = SHORTEST_POLL_SECONDS

    def worked(self) -> None:
        """There was a message; the next one may come soon."""
        self._worked_at = self._clock()
        self._wait = SHORTEST_POLL_SECONDS

    @property
    def is_idle(self) -> bool:
        """Whether nothing happened for a long time."""
        return self._clock() - self._worked_at >= IDLE_SECONDS

    def next_wait(self) -> float:
        """Seconds until the next question."""
        wait = self._wait
        is_busy = self._clock() - self._worked_at < BUSY_SECONDS
        self._wait = min(wait * 1.5, BUSY_POLL_SECONDS if is_busy else POLL_SECONDS)
        return IDLE_POLL_SECONDS if self.is_idle else wait


class Node:
    """One site's loop. `run` is for one thread; `stop` and `renew` are for another."""

    def __init__(self, link: Link, desk: Desk, worker: SiteWorker, board: StatusBoard, log: DaemonLog) -> None:
        self._link = link
        self._desk = desk
        self._worker = worker
        self._board = board
        self._log = log
        self._pace = Pace()

    def run(self) -> None:
        """Until `stop`: be online and answer."""
        try:
            self._answer_leftover()
            while not self._link.is_stopping:
                self._step()
        except Stopped:
            pass
        finally:
            self._link.close()
            self._worker.stop()

    def renew(self) -> None:
        """Take up a new certificate between two messages."""
        self._link.renew()

    def stop(self) -> None:
        """Stop soon: training is cut off, and answered with the code that lets it be asked for again."""
        self._link.stop()
        self._worker.kill()

    def _step(self) -> None:
        """One question, and one message if there is one. The pace counts from the question, which may have waited over there."""
        asked = time.monotonic()
        try:
            pulled = self._link.call(lambda connection: connection.pull())
        except ProtocolError as error:
            self._log.write("message dropped", {"reason": str(error)})
            self._link.wait(POLL_SECONDS)
            return
        if pulled is not None:
            self._serve(pulled)
            self._pace.worked()
            return
        self._board.reach(Stage.IDLE)
        if self._pace.is_idle:
            self._worker.stop()
        self._link.wait(max(SHORTEST_POLL_SECONDS, self._pace.next_wait() - (time.monotonic() - asked)))

    def _serve(self, pulled: Pulled) -> None:
        """Answer one message. What nobody waits for any more is dropped; an error of ours leaves it in hand for the next start."""
        facts = {"type": pulled.message_type[:40], "flower_run": pulled.flower_run_id}
        if not time.time() < pulled.expires:
            self._log.write("message dropped", {**facts, "reason": "it had expired"})
            return
        self._board.take(pulled.header)
        started = time.monotonic()
        try:
            answer = self._desk.answer(pulled, MessageCalls(self._link, pulled))
            answered = time.monotonic()
            answer = self._released(answer, pulled)
            released = time.monotonic()
            self._send(answer, pulled, released - started)
        except (RunOver, GaveUp, Stopped, Interrupted, ProtocolError) as reason:
            self._board.finish(answered=False)
            self._log.write("message dropped", {**facts, "reason": str(reason)})
            return
        self._board.finish(answered=True)
        self._log.write("message answered", {**facts, **_facts(answer), **_seconds(started, answered, released, time.monotonic())})

    def _released(self, answer: Answer, pulled: Pulled) -> Answer:
        """What may leave. While the egress log cannot be written nothing leaves; raises GaveUp when the message has expired by then."""
        while True:
            try:
                return self._desk.release(answer)
            except StorageError as error:
                if self._board.fail(str(error)):
                    self._log.write("nothing may leave", {"reason": "the egress log cannot be written; see the message in status"})
                if self._link.is_stopping or not time.time() + STORAGE_RETRY_SECONDS < pulled.expires:
                    raise GaveUp("the egress log could not be written") from error
                self._link.wait(STORAGE_RETRY_SECONDS)

    def _send(self, answer: Answer, pulled: Pulled, seconds: float) -> None:
        MessageCalls(self._link, pulled).push(answer_to(pulled, answer.records, seconds))
        try:
            self._desk.note_sent(answer)
        except (RefusedError, StorageError) as error:  # it has left, and counts as spent since before
            self._board.fail(str(error))
            self._log.write("ledger", {"problem": type(error).__name__})

    def _answer_leftover(self) -> None:
        """The message that was in hand when the daemon died. Its content is gone, but not what was charged, nor a reply that was stored."""
        state = self._board.state
        if state.in_hand is None:
            return
        pulled = Pulled(bytes.fromhex(state.in_hand), ())
        incoming = Incoming.unread(state.study_id or NO_MESSAGE, state.run_id or NO_RUN, state.round or 0)
        cause = RefusedError(RefusalCode.INTERRUPTED, "the daemon ended while it worked on a message")
        try:
            if time.time() < pulled.expires:
                answer = self._released(self._desk.refuse(RefusalCode.INTERRUPTED, incoming, cause), pulled)
                self._send(answer, pulled, 0.0)
                self._log.write("message answered", _facts(answer))
        except WardroundError as reason:
            self._log.write("message dropped", {"reason": str(reason)})
        self._board.finish(answered=False)


def _seconds(started: float, answered: float, released: float, sent: float) -> dict[str, object]:
    """How long a message took, and each part of it: to answer it, to write its line and check what leaves, to send it."""
    parts = {"answer_seconds": answered - started, "release_seconds": released - answered, "send_seconds": sent - released}
    return {name: round(seconds, 3) for name, seconds in {"seconds": sent - started, **parts}.items()}


def _facts(answer: Answer) -> dict[str, object]:
    asked = answer.incoming
    return {"study": asked.study_id[:12], "run": asked.run_id[:12], "round": asked.round, "answer": answer.kind}
