# SPDX-License-Identifier: Apache-2.0
"""One message, from its announcement to what may leave.

    not train or evaluate, or an agent's     refused
    study and start record from get-run      `client.approvals.permit` (approval, policy, pause); nothing is pulled before it says yes
    content                                  pulled, confirmed, read; it must be of that study and that run
    training or evaluation                   in the worker; when it dies, the one code for failed training. Cut off by a stop of the daemon
                                             it is another: asked again, the round is trained under the charge that it has
    reply                                    through `client.egress.release`

What leaves about a failure is a code. Its cause goes to `site.log`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from flwr.app import ConfigRecord, Message, RecordDict

from client.app import known_code
from client.approvals import Permit, permit
from client.egress import Incoming, release
from client.ledger.book import Ledger
from client.site import open_ledger
from client.site_config import SiteConfig
from client.site_home import SiteHome
from client.site_log import log_failure
from client.site_worker import SiteWorker
from client.status import StatusBoard
from client.worker import WorkerLost
from common.errors import InputError, ProtocolError, RefusedError, StorageError
from common.federation import NO_MESSAGE, SIGNATURE_KEY, STUDY_KEY
from common.flower_compat.fleet import Pulled, RunFacts
from common.privacy.charge_book import Line, State
from common.protocol import FACTS, Instruction, Refusal, RefusalCode
from common.signed import Signed

TRAIN, EVALUATE = "train", "evaluate"


class Channel(Protocol):
    """The calls about one message; each is tried again until it works, the message has expired, or the daemon stops."""

    @property
    def node_id(self) -> int:
        """Flower's number of this site."""

    def run(self) -> RunFacts:
        """What the run was started with."""

    def fetch(self) -> Message:
        """The message with its content."""

    def confirm(self) -> None:
        """Say that the message is here."""


@dataclass(frozen=True)
class Answer:
    """What answers a message. `folder` is its study's, if it came as far as the worker."""

    records: RecordDict
    incoming: Incoming
    folder: Path | None = None

    @property
    def kind(self) -> str:
        """`update`, `evaluated`, `surveyed`, or the code of a refusal."""
        facts = self.records.get(FACTS)
        if not isinstance(facts, ConfigRecord):
            return "unknown"
        return str(facts.get("code") if facts.get("kind") == "refusal" else facts.get("kind"))


class Desk:
    """Answers the messages of one site, one at a time. `clock` gives seconds since the epoch."""

    def __init__(self, home: SiteHome, worker: SiteWorker, board: StatusBoard, clock: Callable[[], float] = time.time) -> None:
        self._home = home
        self._worker = worker
        self._board = board
        self._clock = clock
        self._books: dict[Path, Ledger] = {}

    def answer(self, pulled: Pulled, channel: Channel) -> Answer:
        """The answer to a message, whatever it is. Raises only what `channel` raises when nobody waits for the answer any more."""
        known = Incoming.unread()
        try:
            if pulled.message_type not in (TRAIN, EVALUATE):
                raise ProtocolError(f"a message of type {pulled.message_type[:40]!r}; this site trains and evaluates, nothing else")
            allowed = self._permit(channel.run())
            known = Incoming.unread(allowed.record.study_id, allowed.record.run_id)
            self._worker.prepare(SiteConfig.read(self._home.config))
            return self._work(pulled, channel, allowed)
        except RefusedError as error:
            return self.refuse(known_code(error.code), known, error)
        except ProtocolError as error:
            return self.refuse(RefusalCode.PROTOCOL_MISMATCH, known, error)
        except (InputError, StorageError) as error:
            return self.refuse(RefusalCode.NOT_READY, known, error)

    def refuse(self, code: RefusalCode, incoming: Incoming, cause: Exception) -> Answer:
        """A refusal; its cause goes to the site's own log."""
        log_failure(self._home.folder, code, cause)
        return Answer(Refusal(code, "").to_records(), incoming)

    def release(self, answer: Answer) -> Answer:
        """What may leave of it, after its line in the egress log is durable. Raises StorageError: nothing may leave."""
        book = None if answer.folder is None else self._book(answer.folder)
        return replace(answer, records=release(self._home, answer.incoming, answer.records, now=self._clock(), book=book))

    def note_sent(self, answer: Answer) -> None:
        """Say in the ledger that the reply has left. Raises RefusedError, StorageError; it counts as spent all the same."""
        if answer.folder is None or answer.incoming.sha256 == NO_MESSAGE or answer.kind not in ("update", "evaluated", "surveyed"):
            return
        book, asked = self._book(answer.folder), answer.incoming
        lines = tuple(Line) if answer.kind == "surveyed" else (Line.TRAINING if asked.train else Line.HELD_OUT,)
        slots = [(asked.study_id, asked.run_id, asked.round, line) for line in lines]
        for charge in book.charges():
            if charge.key.slot in slots and charge.state is State.RELEASING:
                book.sent(charge.key)

    def _permit(self, run: RunFacts) -> Permit:
        """Whether this run may work here. Raises RefusedError, ProtocolError, InputError, StorageError."""
        if not run.is_server_app:
            raise ProtocolError("the message is an agent's, not that of a study's server")
        study, signature = run.config.get(STUDY_KEY), run.config.get(SIGNATURE_KEY)
        if not (isinstance(study, str) and isinstance(signature, str) and study and signature):
            raise RefusedError(RefusalCode.STUDY_NOT_APPROVED, "the run has no study with a signed start record; it is none of ours")
        try:
            signed = Signed.from_json(signature)
        except ProtocolError as error:
            raise RefusedError(RefusalCode.STUDY_NOT_APPROVED, f"the run's start record cannot be read ({error})") from error
        return permit(self._home, study, signed, self._clock())

    def _work(self, pulled: Pulled, channel: Channel, allowed: Permit) -> Answer:
        message, incoming = _fetched(pulled, channel, allowed)
        self._board.about(incoming.study_id, incoming.run_id, incoming.round)
        try:
            self._worker.send(message, allowed.folder, channel.node_id)
            del message  # from here on it is in the worker only
            records = self._worker.receive()
        except WorkerLost as error:
            return self._lost(incoming, error)
        if records is None:
            raised = RefusedError(RefusalCode.TRAINING_FAILED, "the app raised an error; its text is on the worker's error output")
            return self.refuse(RefusalCode.TRAINING_FAILED, incoming, raised)
        return Answer(records, incoming, allowed.folder)

    def _lost(self, incoming: Incoming, error: WorkerLost) -> Answer:
        """The refusal for a round whose training process has ended: by us, because the daemon stops, or by itself."""
        code, text = RefusalCode.TRAINING_FAILED, "the training process ended: killed, or out of memory"
        if self._worker.is_cut_off:
            code, text = RefusalCode.INTERRUPTED, "the daemon was stopped while it trained"
        ended = RefusedError(code, text)
        ended.__cause__ = error
        return self.refuse(code, incoming, ended)

    def _book(self, folder: Path) -> Ledger:
        if folder not in self._books:
            self._books = {folder: open_ledger(folder)}
        return self._books[folder]


def _fetched(pulled: Pulled, channel: Channel, allowed: Permit) -> tuple[Message, Incoming]:
    """The message, if it belongs to the run that may work here. Raises RefusedError, ProtocolError; and what `channel` raises."""
    message = channel.fetch()
    channel.confirm()
    instruction = Instruction.from_records(message.content)
    if (instruction.study, instruction.run_id) != (allowed.study.canonical_json, allowed.record.run_id):
        raise RefusedError(RefusalCode.STUDY_NOT_APPROVED, "the message is about another study or run than its start record")
    if instruction.train != (pulled.message_type == TRAIN) or not (instruction.train or instruction.evaluate):
        raise ProtocolError(f"a message of type {pulled.message_type} that asks for something else")
    return message, Incoming.of(instruction, allowed.study)
