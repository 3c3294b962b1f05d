# SPDX-License-Identifier: Apache-2.0
"""A ledger that is behind the log of what left, or that came out of a backup: nothing trains until a recovery has answered it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from client.egress_chain import EgressChain
from client.ledger.book import Ledger
from client.ledger.departures import Exits
from client.ledger.recovery import Recovered, recover, write_off
from client.ledger.rows import EarmarkEntry
from client.ledger.site_witness import EgressHeads, Restored, remove_mark
from common.errors import RefusedError, StorageError
from common.privacy.charges import Line, Standing, State
from tests.client.ledger.leaving import chain, exits, log_exit, watched_book
from tests.client.ledger.support import DELTA, EVENT, SITE, account_in, digest, finish, key, receipt_for


class Site:
    """A site whose updates leave through the log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.book = watched_book(folder)
        self.account = account_in(self.book)

    def rounds(self, *numbers: int, reply: str = "reply") -> None:
        for number in numbers:
            finish(self.book, key(self.account, number))
            log_exit(self.folder, self.book, number, f"{reply} {number}")

    def backup(self) -> None:
        shutil.copy(self.folder / "ledger.sqlite", self.folder / "backup")

    def restore(self) -> Ledger:
        shutil.copy(self.folder / "backup", self.folder / "ledger.sqlite")
        self.book = watched_book(self.folder)
        return self.book

    def recover(self, exits_here: Exits | None = None) -> Recovered:
        return recover(self.book, SITE, exits(self.folder) if exits_here is None else exits_here)

    @property
    def paid(self) -> list[int]:
        return sorted(charge.key.round for charge in self.book.history(self.account, Line.TRAINING) if charge.state is not State.SETTLED)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def refused(book: Ledger, account: str, number: int, code: str = "LEDGER_BEHIND") -> str:
    with pytest.raises(RefusedError, match=code) as error:
        book.reserve(key(account, number), EVENT, 10)
    return str(error.value)


def test_a_ledger_older_than_the_newest_line_trains_nothing_until_it_is_recovered(site: Site) -> None:
    site.rounds(1)
    site.backup()
    site.rounds(2, 3)
    book = site.restore()
    for number in (2, 3, 4):
        assert "the log of what left shows row" in refused(book, site.account, number)
    with pytest.raises(RefusedError, match="LEDGER_BEHIND"):
        book.check_not_behind()
    with pytest.raises(RefusedError, match="LEDGER_BEHIND"):
        book.earmark([EarmarkEntry(site.account, Line.TRAINING, "study", EVENT, 1, 1)])
    assert site.recover() == Recovered(0, 0, False, left=2)
    assert site.paid == [1, 2, 3]
    assert {(charge.event_json, charge.steps) for charge in book.charges()} == {(EVENT, 10)}, "at its planned value"
    refused(book, site.account, 3, "ROUND_LOST")
    assert book.reserve(key(site.account, 4), EVENT, 10) is Standing.NEW
    assert site.recover() == Recovered(0, 0, False), "once is enough"
    assert watched_book(site.folder).spent_outside(key(site.account, 4)) == [], "within the plan of the run"


def test_a_receipt_for_a_line_that_was_answered_shows_nothing_new(site: Site) -> None:
    """Recovered by the log while nobody could be asked; then the coordinator's receipts for the same rounds come."""
    site.backup()
    receipts = []
    for number in (1, 2):
        site.rounds(number)
        receipts.append(receipt_for(site.book))
    site.restore()
    heads = [line.ledger_row for line in chain(site.folder).lines()]
    assert len(heads) == 2 and site.recover(exits(site.folder, planned=[(EVENT, 10)])).left == 2
    for receipt in receipts:
        site.book.take_receipt(receipt)
    site.book.check_not_behind()
    assert recover(site.book, SITE, exits(site.folder)) == Recovered(0, 0, False)
    assert site.paid == [1, 2], "each once"


def test_receipts_say_exactly_and_the_log_only_what_they_do_not(site: Site) -> None:
    site.backup()
    site.rounds(1, 2)
    receipt = receipt_for(site.book)
    site.rounds(3)
    book = site.restore()
    book.take_receipt(receipt)
    assert site.recover() == Recovered(1, 2, False, left=1)
    assert site.paid == [1, 2, 3]
    owners = {charge.key.round: charge.key.account for charge in book.charges()}
    assert owners[1] == owners[2] == site.account != owners[3], "the log names no account, so round 3 counts for everybody"
    other = book.register({Line.TRAINING: ["somebody else"]}, DELTA)
    assert [charge.key.round for charge in book.history(other, Line.TRAINING)] == [3]


def test_a_reservation_that_left_is_never_trained_again(site: Site) -> None:
    one = key(site.account, 1)
    site.book.reserve(one, EVENT, 10)
    site.backup()
    site.book.releasing(one, digest("reply 1"))
    log_exit(site.folder, site.book, 1, "reply 1")
    book = site.restore()
    assert site.recover().left == 1
    refused(book, site.account, 1, "ROUND_LOST")
    assert site.paid == [1], "the charge was there, only its state was lost"


def test_two_updates_of_one_round_cost_twice_and_the_same_bytes_once(site: Site) -> None:
    site.backup()
    site.rounds(1)
    log_exit(site.folder, site.book, 1, "reply 1")  # sent again, byte for byte
    log_exit(site.folder, site.book, 2, "never charged")
    log_exit(site.folder, site.book, 2, "never charged either")
    site.restore()
    assert site.recover(exits(site.folder, planned=[(EVENT, 10)])).left == 3
    assert site.paid == [1, 2, 2]


@pytest.mark.parametrize("promised", [True, False])
def test_what_a_forgotten_round_cost(site: Site, promised: bool) -> None:
    """As it was promised; else as the study plans it; and where nobody knows, it stays closed."""
    if promised:
        site.book.earmark([EarmarkEntry(site.account, Line.TRAINING, "study", EVENT, 3, 1)])
    site.backup()
    site.rounds(1)
    book = site.restore()
    if not promised:
        with pytest.raises(RefusedError, match=r"LEDGER_BEHIND: 1 replies left .* not known here: the first is round 1 of run run"):
            site.recover()
        refused(book, site.account, 2)
    assert site.recover(exits(site.folder, planned=[] if promised else [(EVENT, 7)])).left == 1
    assert [(charge.event_json, charge.steps) for charge in book.charges()] == [(EVENT, 1 if promised else 7)]


def test_a_second_restore_is_seen_as_well(site: Site) -> None:
    site.backup()
    site.rounds(1)
    site.restore()
    site.recover(exits(site.folder, planned=[(EVENT, 10)]))
    site.rounds(2)
    book = site.restore()
    refused(book, site.account, 3)
    assert site.recover(exits(site.folder, planned=[(EVENT, 10)])).left == 2
    assert site.paid == [1, 2]


def test_a_mark_closes_everything_until_it_is_answered(site: Site) -> None:
    site.rounds(1)
    mark = Restored.new(site.book.fold().number, 1e9, 1e9 + 5)
    mark.write(site.folder)
    assert (site.folder / "restored.json").stat().st_mode & 0o777 == 0o600
    assert "this site was restored from a backup" in refused(site.book, site.account, 2)
    assert recover(site.book, SITE) == Recovered(0, 0, False), "receipts alone do not answer it"
    refused(site.book, site.account, 2)
    assert site.recover() == Recovered(0, 0, False)
    assert site.book.reserve(key(site.account, 2), EVENT, 10) is Standing.NEW, "the file may still be there: the ledger has answered it"
    remove_mark(site.folder)
    remove_mark(site.folder)
    assert Restored.read(site.folder) is None
    Restored.new(mark.row, 1e9, 1e9 + 9).write(site.folder)
    refused(site.book, site.account, 3)


def test_a_mark_that_cannot_be_read_closes_everything(site: Site) -> None:
    (site.folder / "restored.json").write_text("{}")
    with pytest.raises(StorageError, match=r"restored\.json: cannot be read"):
        site.book.reserve(key(site.account, 1), EVENT, 10)


def test_accounts_that_are_all_written_off_answer_log_and_mark(site: Site) -> None:
    site.backup()
    site.rounds(1)
    Restored.new(1, 1e9, 1e9).write(site.folder)
    book = site.restore()
    write_off(book, site.account, "nobody can say what left")
    fresh = book.register({Line.TRAINING: ["somebody new"]}, DELTA)
    assert book.reserve(key(fresh, 1), EVENT, 10) is Standing.NEW
    refused(book, site.account, 2, "BUDGET_EXHAUSTED")


# How the log is read.


class Reading(EgressChain):
    """Counts the lines that are checked."""

    checks = 0

    def checked(self, text: bytes):
        self.checks += 1
        return super().checked(text)


def test_only_what_is_new_is_read(site: Site) -> None:
    reading = Reading(site.folder / "egress.jsonl", SITE)
    heads = EgressHeads(reading)
    assert heads.newest() is None
    site.rounds(1, 2, 3)
    fold = site.book.fold()
    for number in range(200):  # more than one block of lines without a head
        log_exit(site.folder, None, number, "no", kind="refusal")
    assert (site.folder / "egress.jsonl").stat().st_size > 2 * (1 << 16)
    assert heads.newest() == (fold.number, fold.head) and reading.checks == 1
    assert heads.newest() == (fold.number, fold.head) and reading.checks == 1
    site.rounds(4)
    fold = site.book.fold()
    assert heads.newest() == (fold.number, fold.head) and reading.checks == 2
    log_exit(site.folder, None, 5, "no", kind="refusal")
    assert heads.newest() == (fold.number, fold.head) and reading.checks == 2


def test_a_long_line_is_read_over_blocks(site: Site) -> None:
    site.rounds(1)
    fold = site.book.fold()
    chain(site.folder).append(lambda end: _note(end.number + 1, end.hash, "n" * 300_000))
    assert EgressHeads(chain(site.folder)).newest() == (fold.number, fold.head)


def _note(number: int, previous: str, text: str):
    from client.egress_chain import EgressLine

    return EgressLine(number=number, time=1.0, kind="note", note=text, previous=previous)


def tear(path: Path) -> None:
    """A crash in the middle of the newest line: its reply never left."""
    path.write_bytes(path.read_bytes()[:-40])


def replace(path: Path) -> None:
    old = path.read_bytes().splitlines(keepends=True)[0]
    path.unlink()
    path.write_bytes(old)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])


@pytest.mark.parametrize("change", [tear, replace, cut])
@pytest.mark.parametrize("known", [True, False], ids=["read before", "read for the first time"])
def test_a_torn_or_replaced_log_is_read_anew(site: Site, change: Callable[[Path], None], known: bool) -> None:
    site.rounds(1, 2)
    heads = EgressHeads(chain(site.folder))
    if known:
        heads.newest()
    first = next(iter(chain(site.folder).lines()))
    change(site.folder / "egress.jsonl")
    assert heads.newest() == (first.ledger_row, first.ledger_hash)


def test_a_line_of_somebody_else_closes_the_ledger(site: Site) -> None:
    site.rounds(1)
    path = site.folder / "egress.jsonl"
    line = json.loads(path.read_text())
    path.write_text(json.dumps({**line, "ledger_row": 1}, sort_keys=True, separators=(",", ":")) + "\n")
    with pytest.raises(StorageError, match=r"egress\.jsonl: the last line was edited"):
        watched_book(site.folder).reserve(key(site.account, 2), EVENT, 10)
    path.unlink()
    assert watched_book(site.folder).reserve(key(site.account, 2), EVENT, 10) is Standing.NEW
