# SPDX-License-Identifier: Apache-2.0
"""Heads, receipts, and what happens after the ledger was restored from an old copy."""

import json
import shutil
from pathlib import Path

import pytest

from client.ledger.book import Ledger
from client.ledger.recovery import Recovered, recover, write_off
from common.crypto.secrets import Secret
from common.errors import InputError, ProtocolError, RefusedError
from common.privacy.charges import ChargeKey, Line, Standing, State
from common.privacy.receipts import make_receipt
from tests.client.ledger.support import COORDINATOR, DELTA, EVENT, SITE, account_in, digest, finish, key, open_book, receipt_for


class Disk:
    """A site's folder, its backups, and what the coordinator has seen of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.book = open_book(folder)
        self.account = account_in(self.book)

    def backup(self) -> None:
        shutil.copy(self.folder / "ledger.sqlite", self.folder / "backup")

    def restore(self) -> Ledger:
        shutil.copy(self.folder / "backup", self.folder / "ledger.sqlite")
        self.book = open_book(self.folder)
        return self.book

    def rounds(self, *numbers: int, run: str = "run") -> None:
        for number in numbers:
            finish(self.book, key(self.account, number, run=run))

    def receipt(self) -> None:
        self.book.take_receipt(receipt_for(self.book))


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path)


def refused(book: Ledger, one: ChargeKey, code: str = "LEDGER_BEHIND") -> None:
    with pytest.raises(RefusedError, match=code):
        book.reserve(one, EVENT, 10)


def paid(book: Ledger, account: str) -> list[int]:
    return sorted(charge.key.round for charge in book.history(account, Line.TRAINING))


def test_receipts_of_this_ledger_change_nothing(disk: Disk) -> None:
    for number in range(3):
        disk.rounds(number)
        disk.receipt()
        disk.receipt()
    assert len((disk.folder / "receipts.jsonl").read_bytes().splitlines()) == 3, "each once"
    assert recover(disk.book, SITE) == Recovered(0, 0, False)
    assert disk.book.reserve(key(disk.account, 9), EVENT, 10) is Standing.NEW


def test_a_restored_ledger_trains_nothing_until_it_is_recovered(disk: Disk) -> None:
    disk.rounds(1, 2)
    disk.backup()
    disk.rounds(3, 4, 5)
    disk.receipt()
    book = disk.restore()
    refused(book, key(disk.account, 6))
    refused(book, key(disk.account, 3))
    refused(book, key(disk.account, 2))
    with pytest.raises(RefusedError, match="LEDGER_BEHIND"):
        book.check_not_behind()
    assert recover(book, SITE) == Recovered(1, 3, False)
    assert paid(book, disk.account) == [1, 2, 3, 4, 5]
    assert [charge.state for charge in book.charges()] == [State.SENT] * 2 + [State.RECOVERED] * 3
    assert {(charge.event_json, charge.steps) for charge in book.charges()} == {(EVENT, 10)}, "at its planned value"
    refused(book, key(disk.account, 3), "ROUND_LOST")
    assert book.reserve(key(disk.account, 2), EVENT, 10) is Standing.RESEND
    assert book.reserve(key(disk.account, 6), EVENT, 10) is Standing.NEW
    assert recover(open_book(disk.folder), SITE) == Recovered(0, 0, False), "once is enough"
    assert book.spent_outside(key(disk.account, 6)) == [], "what was recovered for the run is within the run's plan"


def test_the_receipt_may_come_only_after_the_restore(disk: Disk) -> None:
    disk.backup()
    disk.rounds(1)
    receipt = receipt_for(disk.book)
    book = disk.restore()
    assert book.reserve(key(disk.account, 7, run="other"), EVENT, 10) is Standing.NEW, "nothing shows it yet"
    book.take_receipt(receipt)
    refused(book, key(disk.account, 8, run="other"))
    assert recover(book, SITE).charges == 1
    assert paid(book, disk.account) == [1, 7]


def test_a_round_that_left_twice_costs_twice(disk: Disk) -> None:
    """Restored, and asked for the same round before any receipt came: two updates left, so two charges."""
    disk.backup()
    disk.rounds(1)
    receipt = receipt_for(disk.book)
    book = disk.restore()
    finish(book, key(disk.account, 1))
    book.take_receipt(receipt)
    assert recover(book, SITE).charges == 1
    assert paid(book, disk.account) == [1, 1]
    assert len(book.spent_outside(key(disk.account, 2))) == 1, "one is in the run's plan, the other is beyond it"


def test_a_reservation_that_left_after_the_backup_is_never_made_again(disk: Disk) -> None:
    disk.book.reserve(key(disk.account, 1), EVENT, 10)
    disk.backup()
    disk.book.releasing(key(disk.account, 1), digest("reply"))
    disk.receipt()
    book = disk.restore()
    assert recover(book, SITE).charges == 1
    assert paid(book, disk.account) == [1], "the charge was there already, only its state was lost"
    refused(book, key(disk.account, 1), "ROUND_LOST")


def test_a_reservation_that_is_still_open_stays_open(disk: Disk) -> None:
    disk.book.reserve(key(disk.account, 9, line=Line.HELD_OUT), EVENT, 1)
    disk.backup()
    disk.rounds(1)
    disk.receipt()
    book = disk.restore()
    recover(book, SITE)
    assert book.reserve(key(disk.account, 9, line=Line.HELD_OUT), EVENT, 1) is Standing.RETRY


def test_lost_patients_make_a_charge_count_for_everybody(disk: Disk) -> None:
    disk.backup()
    lost = disk.book.register({Line.TRAINING: ["x", "y"]}, DELTA)
    finish(disk.book, key(lost, 1))
    disk.receipt()
    book = disk.restore()
    assert recover(book, SITE) == Recovered(1, 1, True)
    assert paid(book, disk.account) == [1], "it is not known who paid, so everybody did"
    again = book.register({Line.TRAINING: ["y"]}, DELTA)
    assert paid(book, again) == [1], "also who comes later"


def test_patients_who_joined_after_the_backup_are_not_forgotten(disk: Disk) -> None:
    disk.backup()
    disk.book.register({Line.TRAINING: ["p1", "joined"]}, DELTA)
    disk.rounds(1)
    disk.receipt()
    book = disk.restore()
    assert recover(book, SITE).patients_lost
    assert paid(book, book.register({Line.TRAINING: ["joined"]}, DELTA)) == [1]


def test_a_lost_merge_is_made_again(disk: Disk) -> None:
    other = disk.book.register({Line.TRAINING: ["x"]}, DELTA)
    disk.backup()
    disk.book.register({Line.TRAINING: ["p1", "x"]}, DELTA)
    disk.rounds(1)
    disk.receipt()
    book = disk.restore()
    assert recover(book, SITE) == Recovered(1, 1, False)
    assert paid(book, other) == [1]


def test_a_second_restore_is_seen_as_well(disk: Disk) -> None:
    disk.backup()
    disk.rounds(1, 2)
    disk.receipt()
    recover(disk.restore(), SITE)
    disk.rounds(3)
    disk.receipt()
    book = disk.restore()
    refused(book, key(disk.account, 4))
    assert recover(book, SITE).charges == 3
    assert paid(book, disk.account) == [1, 2, 3]
    for name in ("recovered once", "recovered twice"):
        assert paid(open_book(disk.folder), disk.account) == [1, 2, 3], name


def test_a_deleted_ledger_is_behind(disk: Disk) -> None:
    disk.rounds(1)
    disk.receipt()
    (disk.folder / "ledger.sqlite").unlink()
    book = open_book(disk.folder)
    account = account_in(book)
    refused(book, key(account, 2))
    assert recover(book, SITE) == Recovered(1, 1, True)
    assert paid(book, account) == [1]


def test_only_receipts_with_both_signatures_are_believed(disk: Disk) -> None:
    head = disk.book.signed_head()
    stranger = Secret(b"x" * 32).signer
    forged = json.loads(head)
    forged["head"] = forged["head"].replace('"row":1', '"row":9')
    other_site = open_book(disk.folder / "other", Secret(b"o" * 32))
    (disk.folder / "other").mkdir()
    account_in(other_site)
    for bad, why in (
        (make_receipt(head, stranger), "coordinator"),
        (make_receipt(json.dumps(forged), COORDINATOR.signer), "this site"),
        (make_receipt(other_site.signed_head(), COORDINATOR.signer), "this site"),
        (head, "cannot be read|coordinator"),
        ("[]", "cannot be read"),
        ("no json", "cannot be read"),
        ('{"head": 1, "signature": 2}', "cannot be read"),
    ):
        with pytest.raises(ProtocolError, match=why):
            disk.book.take_receipt(bad)
    assert not (disk.folder / "receipts.jsonl").exists()
    (disk.folder / "receipts.jsonl").write_text(make_receipt(json.dumps(forged), COORDINATOR.signer) + "\nnot a line\n")
    assert disk.book.reserve(key(disk.account), EVENT, 10) is Standing.NEW, "a bad line in the file closes nothing"


def test_a_torn_receipt_is_left_out_and_the_next_takes_its_place(disk: Disk) -> None:
    disk.receipt()
    path = disk.folder / "receipts.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    disk.rounds(1)
    assert open_book(disk.folder).receipts() == []
    open_book(disk.folder).take_receipt(receipt_for(disk.book))
    assert [receipt.row for receipt in open_book(disk.folder).receipts()] == [4]


def test_the_head_tells_a_stranger_nothing_but_its_row(disk: Disk) -> None:
    disk.rounds(*range(5))
    head = disk.book.signed_head()
    sizes = set()
    for word in (disk.account, "study", "GaussianDpEvent"):
        assert word not in head
    for number in range(5, 9):
        disk.rounds(number)
        sizes.add(len(disk.book.signed_head()))
    assert len(sizes) == 1, "padded"
    facts = json.loads(json.loads(head)["head"])
    assert set(facts) == {"row", "hash", "sealed"} and facts["row"] == 16


def test_a_written_off_account_never_trains_again(disk: Disk) -> None:
    other = disk.book.register({Line.TRAINING: ["x"]}, DELTA)
    disk.backup()
    disk.rounds(1)
    disk.receipt()
    book = disk.restore()
    assert write_off(book, disk.account[:8], " the cohort was withdrawn ") == disk.account
    refused(book, key(other, 1), "LEDGER_BEHIND")
    write_off(book, other, "as well")
    refused(book, key(disk.account, 2), "BUDGET_EXHAUSTED")
    merged = book.register({Line.TRAINING: ["p1", "z"]}, DELTA)
    refused(book, key(merged, 2), "BUDGET_EXHAUSTED")
    fresh = book.register({Line.TRAINING: ["somebody new"]}, DELTA)
    assert book.reserve(key(fresh, 2), EVENT, 10) is Standing.NEW, "all accounts are closed, so the receipts are answered"


@pytest.mark.parametrize(
    ("account", "reason", "said"), [("", "why", "accounts start"), ("zz", "why", "accounts start"), ("ok", " ", "words")]
)
def test_a_write_off_needs_one_account_and_a_reason(disk: Disk, account: str, reason: str, said: str) -> None:
    with pytest.raises(InputError, match=said):
        write_off(disk.book, disk.account if account == "ok" else account, reason)
    assert len(disk.book.rows()) == 1
