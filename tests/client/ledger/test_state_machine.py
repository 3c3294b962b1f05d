# SPDX-License-Identifier: Apache-2.0
"""Any order of rounds, crashes at any write, backups, restores, receipts and recoveries, on several handles at once.

The model keeps what really happened: which updates left. Whatever the ledger says, each of them must be paid for, a reply is never
made twice under one charge, and what was acknowledged and not rolled back is there.
"""

import shutil
import sqlite3
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import client.ledger.database as database
from client.ledger.recovery import recover
from client.ledger.rows import EarmarkEntry
from client.ledger.site_witness import Restored, remove_mark
from common.errors import RefusedError
from common.privacy.charges import Line, Standing, State
from tests.client.ledger.conftest import MEMORY
from tests.client.ledger.leaving import exits, log_exit, watched_book
from tests.client.ledger.support import EVENT, SITE, account_in, digest, key, open_book, receipt_for

ROUNDS = st.integers(0, 3)
CRASH = st.one_of(st.none(), st.integers(0, 10))


class Crash(Exception):
    """The process dies here."""


class Dying:
    """A connection that dies before statement number `left`, or after it for the odd ones: the COMMIT included."""

    def __init__(self, connection: sqlite3.Connection, left: list[int]) -> None:
        self._connection, self._left = connection, left

    def _spend(self) -> None:
        self._left[0] -= 1
        if self._left[0] < 0:
            raise Crash

    def execute(self, *arguments: object) -> sqlite3.Cursor:
        self._spend()
        result = self._connection.execute(*arguments)
        self._spend()
        return result

    def executemany(self, *arguments: object) -> sqlite3.Cursor:
        self._spend()
        return self._connection.executemany(*arguments)

    def close(self) -> None:
        self._connection.close()


@contextmanager
def crashing(after: int | None):
    """Within the block the process dies after so many steps in the database; None: it lives."""
    connect, left = database.LedgerFile._connect, [after or 0]
    if after is None:
        yield
        return
    with patch.object(database.LedgerFile, "_connect", lambda file: Dying(connect(file), left)):
        yield


class Site(RuleBasedStateMachine):
    @initialize()
    def install(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=MEMORY if MEMORY.is_dir() else None))
        self.handles = [watched_book(self.folder) for _ in range(2)]
        self.account = account_in(self.handles[0])
        self.left: list[tuple[int, str]] = []  # round and reply, each as often as it left with other bytes
        self.outbox: dict[int, str] = {}
        self.attempts = 0
        self.shown: list[str] = []  # receipts that the coordinator could send
        self.promised: set[int] = {0}  # what the study may have been promised last; more than one after a crash
        self.in_log: list[tuple[int, str]] = []  # what the log of what left shows
        self.behind = False  # something left that the ledger does not know of, and the site can see that
        self.backup()

    def teardown(self) -> None:
        if hasattr(self, "folder"):
            shutil.rmtree(self.folder)

    def restart(self) -> None:
        self.handles = [watched_book(self.folder) for _ in range(2)]

    @rule(number=ROUNDS, which=st.integers(0, 1), crash=CRASH, message=st.sampled_from(["message", "message", "other"]))
    def train(self, number: int, which: int, crash: int | None, message: str) -> None:
        """One whole round, which may die anywhere."""
        one, book = key(self.account, number, message=message), self.handles[which]
        try:
            with crashing(crash):
                if book.reserve(one, EVENT, 10) is not Standing.RESEND:
                    assert one.slot in {charge.key.slot for charge in book.charges()}, "charged before the first gradient"
                    assert not self.behind, "it trains although more has left than the ledger knows"
                    self.attempts += 1
                    self.outbox[number] = f"reply {self.attempts}"
                    book.releasing(one, digest(self.outbox[number]))
                released = {charge.reply_sha256 for charge in book.charges() if charge.key == one}
                reply = self.outbox.get(number, "")
                if digest(reply) not in released:
                    return  # restored: what is in the outbox is not what this charge released, so nothing is sent
                log_exit(self.folder, book, number, reply)
                self.in_log.append((number, reply))
                receipt = receipt_for(book)  # the head rides on the reply
                self.shown.append(receipt)
                if (number, reply) not in self.left:
                    self.left.append((number, reply))
                book.sent(one)
        except Crash:
            self.restart()
        except RefusedError as error:
            assert error.code in ("ROUND_CONFLICT", "LEDGER_BEHIND", "ROUND_LOST"), error

    @rule(number=ROUNDS, crash=CRASH)
    def give_up(self, number: int, crash: int | None) -> None:
        """A round that fails before its first gradient."""
        one, book = key(self.account, number), self.handles[0]
        try:
            with crashing(crash):
                if book.reserve(one, EVENT, 10) is Standing.NEW:
                    book.settle_to_zero(one)
        except Crash:
            self.restart()
        except RefusedError as error:
            assert error.code in ("ROUND_CONFLICT", "LEDGER_BEHIND", "ROUND_LOST"), error

    @rule(count=st.integers(0, 3), which=st.integers(0, 1), crash=CRASH)
    def promise(self, count: int, which: int, crash: int | None) -> None:
        """An approval for so many rounds, or its withdrawal."""
        try:
            with crashing(crash):
                self.handles[which].earmark([EarmarkEntry(self.account, Line.TRAINING, "study", EVENT, count, min(count, 1))])
            self.promised = {count}
        except Crash:
            self.promised |= {count}
            self.restart()
        except RefusedError as error:
            assert error.code == "LEDGER_BEHIND", error

    @rule()
    def backup(self) -> None:
        shutil.copy(self.folder / "ledger.sqlite", self.folder / "backup")
        self.backed_up = set(self.promised)
        log = self.folder / "egress.jsonl"
        (self.folder / "backup-log").write_bytes(log.read_bytes() if log.exists() else b"")
        self.backed_up_log, self.behind_at_backup = list(self.in_log), self.behind

    @rule(notice=st.booleans(), log_too=st.booleans())
    def restore(self, notice: bool, log_too: bool) -> None:
        """An old file comes back; with `notice` the processes are started anew, else they go on.

        `log_too`: the whole site comes out of a backup, with its mark. Else the log of what left is as it was, and shows what is lost.
        """
        self.behind = self.behind_at_backup or log_too or set(self.in_log) != set(self.backed_up_log)
        if log_too:
            shutil.copy(self.folder / "backup-log", self.folder / "egress.jsonl")
            Restored.new(0, 1.0, 2.0).write(self.folder)
            self.in_log = list(self.backed_up_log)
        shutil.copy(self.folder / "backup", self.folder / "ledger.sqlite")
        (self.folder / "ledger.sqlite-journal").unlink(missing_ok=True)
        self.promised = set(self.backed_up)
        if notice:
            self.restart()

    @precondition(lambda self: self.shown)
    @rule(which=st.integers(0, 1))
    def hear_from_the_coordinator(self, which: int) -> None:
        for receipt in self.shown:
            self.handles[which].take_receipt(receipt)

    @rule(crash=CRASH)
    def recover_ledger(self, crash: int | None) -> None:
        self.restart()
        try:
            if Restored.read(self.folder) is not None:  # it asks the coordinator first
                for receipt in self.shown:
                    self.handles[0].take_receipt(receipt)
            with crashing(crash):
                recover(self.handles[0], SITE, exits(self.folder, planned=[(EVENT, 10)]))
            remove_mark(self.folder)
            self.behind = False
        except Crash:
            self.restart()
            self.behind = bool(self.handles[0].unanswered())

    @invariant()
    def every_update_that_left_is_paid_for(self) -> None:
        """Once all receipts are in and recovered, there are at least as many charges of a round as updates of it that left."""
        if not hasattr(self, "folder"):
            return
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as copy:
            for path in self.folder.iterdir():
                shutil.copy(path, copy)
            book = watched_book(Path(copy))
            for receipt in self.shown:
                book.take_receipt(receipt)
            recover(book, SITE, exits(Path(copy), planned=[(EVENT, 10)]))
            book.check_not_behind()
            paid = Counter(charge.key.round for charge in book.history(self.account, Line.TRAINING) if charge.state is not State.SETTLED)
            assert not Counter(number for number, _ in self.left) - paid
            book.check_storage()

    @invariant()
    def what_the_log_shows_is_paid_for_without_any_receipt(self) -> None:
        """Nobody can be asked: the site's own log alone leads to a charge for each update in it."""
        if not hasattr(self, "folder"):
            return
        with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as copy:
            for path in self.folder.iterdir():
                shutil.copy(path, copy)
            (Path(copy) / "receipts.jsonl").unlink(missing_ok=True)
            book = watched_book(Path(copy))
            recover(book, SITE, exits(Path(copy), planned=[(EVENT, 10)]))
            book.check_not_behind()
            paid = Counter(charge.key.round for charge in book.history(self.account, Line.TRAINING) if charge.state is not State.SETTLED)
            assert not Counter(number for number, _ in set(self.in_log)) - paid

    @invariant()
    def promises_are_what_was_promised_less_what_was_charged(self) -> None:
        """A promise that was acknowledged stands until another takes its place, and is used up by rounds, never by anything else."""
        if not hasattr(self, "folder"):
            return
        book = open_book(self.folder)
        rounds = {charge.key.round for charge in book.charges() if charge.state is not State.SETTLED}
        left = [promise.count for promise in book.promises(self.account, Line.TRAINING)]
        assert sum(left) in {max(count - len(rounds), 0) for count in self.promised}


TestSite = Site.TestCase
TestSite.settings = settings(max_examples=25, stateful_step_count=12, deadline=None)
