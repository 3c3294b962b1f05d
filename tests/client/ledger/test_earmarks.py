# SPDX-License-Identifier: Apache-2.0
"""What studies were promised: rows like any other, used up by charges, and gone after a restore from before them."""

import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from client.ledger.book import Ledger
from client.ledger.recovery import recover, write_off
from client.ledger.rows import EarmarkEntry, Row, entry_from_json, entry_to_json
from common.errors import InputError, RefusedError, StorageError
from common.privacy.charges import ChargeKey, Line
from tests.client.ledger.support import DELTA, EVENT, SITE, account_in, digest, finish, key, open_book, receipt_for


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return open_book(tmp_path)


@pytest.fixture
def account(book: Ledger) -> str:
    return account_in(book)


def earmark(account: str, count: int = 5, runs: int = 1, study: str = "study", line: Line = Line.TRAINING) -> EarmarkEntry:
    return EarmarkEntry(account, line, study, EVENT, count, runs)


def left(book: Ledger, account: str, line: Line = Line.TRAINING) -> dict[str, tuple[int, int]]:
    """Study to releases and new runs that it was promised and has not used."""
    return {promise.earmark.study_id: (promise.count, promise.new_runs) for promise in book.promises(account, line)}


def test_each_charge_uses_one_up(book: Ledger, account: str, tmp_path: Path) -> None:
    book.earmark([earmark(account, 3, 2)])
    assert left(book, account) == {"study": (3, 2)}
    finish(book, key(account, 1, run="one"))
    assert left(book, account) == {"study": (2, 1)}
    book.reserve(key(account, 1, run="two"), EVENT, 1)
    assert left(book, account) == left(open_book(tmp_path), account) == {"study": (1, 0)}
    book.settle_to_zero(key(account, 1, run="two"))
    assert left(book, account) == {"study": (2, 1)}, "what costs nothing uses nothing"
    for number in range(2, 5):
        finish(book, key(account, number, run="one"))
    assert left(book, account) == {}, "never below nothing"


def test_only_the_studys_own_charges_on_that_line_use_it_up(book: Ledger, account: str) -> None:
    book.earmark([earmark(account, 3)])
    book.reserve(ChargeKey(account, "another study", "run", 1, digest("message")), EVENT, 1)
    book.reserve(key(account, 1, line=Line.HELD_OUT), EVENT, 1)
    assert left(book, account) == {"study": (3, 1)}


def test_a_later_one_takes_its_place_and_zero_withdraws_it(book: Ledger, account: str, tmp_path: Path) -> None:
    book.earmark([earmark(account, 3), earmark(account, 1, line=Line.HELD_OUT), earmark(account, 9, study="other")])
    book.earmark([earmark(account, 6, 2)])
    assert left(book, account) == {"study": (6, 2), "other": (9, 1)}
    assert left(book, account, Line.HELD_OUT) == {"study": (1, 1)}
    book.earmark([earmark(account, 0, 0)])
    assert left(book, account) == left(open_book(tmp_path), account) == {"other": (9, 1)}
    assert book.fold().earmarks.standing("study", Line.TRAINING) is None
    assert len(book.rows()) == 6, "one row an event"


def test_saying_the_same_again_writes_no_row(book: Ledger, account: str) -> None:
    for _ in range(2):
        book.earmark([earmark(account)])
    book.earmark([earmark(account, 0, 0, study="never promised")])
    assert len(book.rows()) == 2


def test_an_earmark_charges_nothing_and_allows_nothing(book: Ledger, account: str) -> None:
    book.earmark([earmark(account)])
    assert book.spent() == [] and book.charges() == [] and book.spent_outside(key(account)) == []


def test_it_follows_its_patients(book: Ledger) -> None:
    one = book.register({Line.TRAINING: ["a"]}, DELTA)
    other = book.register({Line.TRAINING: ["b"]}, DELTA)
    book.earmark([earmark(other, 4)])
    assert left(book, one) == {}
    merged = book.register({Line.TRAINING: ["a", "b"]}, DELTA)
    assert merged == one and left(book, one) == left(book, other) == {"study": (4, 1)}
    moved = book.register({Line.TRAINING: ["c"]}, DELTA)
    book.earmark([earmark(moved, 2)])
    assert (left(book, one), left(book, moved)) == ({}, {"study": (2, 1)}), "approved anew for another cohort"


def test_on_a_joint_account_both_lines_see_both(book: Ledger, account: str) -> None:
    book.earmark([earmark(account, 3), earmark(account, 1, line=Line.HELD_OUT, study="other")])
    assert left(book, account) == {"study": (3, 1)}
    book.register({Line.TRAINING: ["p3"]}, DELTA)
    assert left(book, account) == left(book, account, Line.HELD_OUT) == {"study": (3, 1), "other": (1, 1)}


def test_the_check_sees_the_ledger_as_it_will_be_written_on(book: Ledger, account: str, tmp_path: Path) -> None:
    """Two approvals at once: whoever comes second sees what the first was promised."""
    twin = open_book(tmp_path)
    assert left(twin, account) == {}

    def at_most_one(fold) -> None:
        if fold.promises(account, Line.TRAINING):
            raise RefusedError("BUDGET_EXHAUSTED", "promised already")

    book.earmark([earmark(account)], at_most_one)
    with pytest.raises(RefusedError, match="promised already"):
        twin.earmark([earmark(account, study="other")], at_most_one)
    assert left(twin, account) == {"study": (5, 1)} and len(book.rows()) == 2


def test_a_closed_or_unknown_account_is_promised_nothing(book: Ledger, account: str) -> None:
    with pytest.raises(InputError, match="register the cohort"):
        book.earmark([earmark("no such account")])
    book.earmark([earmark(account)])
    write_off(book, account, "withdrawn")
    with pytest.raises(RefusedError, match="BUDGET_EXHAUSTED"):
        book.earmark([earmark(account, 6)])
    book.earmark([earmark(account, 0, 0)])
    assert left(book, account) == {}, "a promise can always be taken back"


@pytest.mark.parametrize(
    "changes", [{"count": -1}, {"count": 0}, {"runs": 0}, {"runs": 6}, {"event_json": "{}  "}, {"account": ""}, {"study_id": ""}], ids=str
)
def test_senseless_promises_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(InputError):
        replace(earmark("account"), **changes)


def test_what_is_stored_reads_back_and_nothing_else_does() -> None:
    one = earmark("account", 7, 2)
    text = entry_to_json(one, "n")
    assert entry_from_json(text) == one
    for old, new in (
        ('"count":7', '"count":7.0'),
        ('"runs":2', '"runs":true'),
        ('"line":"training"', '"line":"both"'),
        ('"count":7', '"cost":7'),
    ):
        with pytest.raises((ValueError, KeyError, TypeError, InputError)):
            entry_from_json(text.replace(old, new))


def test_a_changed_promise_is_found(book: Ledger, account: str, tmp_path: Path) -> None:
    book.earmark([earmark(account, 5)])
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as database:
        sql = database.execute("SELECT sql FROM sqlite_master WHERE name = 'rows_update'").fetchone()[0]
        database.execute("DROP TRIGGER rows_update")
        database.execute("""UPDATE rows SET content = replace(content, '"count":5', '"count":1') WHERE number = 2""")
        database.execute(sql)
        database.commit()
    with pytest.raises(StorageError, match="row 2"):
        open_book(tmp_path).promises(account, Line.TRAINING)


def test_a_row_for_patients_that_are_not_there_could_not_have_been_written(book: Ledger, account: str, tmp_path: Path) -> None:
    fold = book.fold()
    row = Row.following(fold.number, fold.head, earmark("f" * 32), book._mac_key)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as database:
        database.execute("INSERT INTO rows VALUES (?, ?, ?, ?, ?)", (row.number, row.content, row.previous, row.hash, row.mac))
        database.commit()
    with pytest.raises(StorageError, match="an earmark for account ffff"):
        open_book(tmp_path).charges()


def test_after_a_restore_promises_are_gone_and_charges_are_not(book: Ledger, account: str, tmp_path: Path) -> None:
    """What was promised after the backup is not in the receipts: IT approves again. What was charged is charged again."""
    book.earmark([earmark(account, 5)])
    shutil.copy(tmp_path / "ledger.sqlite", tmp_path / "backup")
    book.earmark([earmark(account, 9, study="later")])
    finish(book, key(account, 1))
    book.take_receipt(receipt_for(book))
    shutil.copy(tmp_path / "backup", tmp_path / "ledger.sqlite")
    restored = open_book(tmp_path)
    with pytest.raises(RefusedError, match="LEDGER_BEHIND"):
        restored.earmark([earmark(account, 9, study="later")])
    assert recover(restored, SITE).charges == 1
    assert left(restored, account) == {"study": (4, 1 - 1)}, "the recovered charge uses up one"
    restored.earmark([earmark(account, 9, study="later")])
    assert left(open_book(tmp_path), account) == {"study": (4, 0), "later": (9, 1)}


def test_a_round_that_is_charged_twice_uses_up_one(book: Ledger, account: str, tmp_path: Path) -> None:
    book.earmark([earmark(account, 5)])
    shutil.copy(tmp_path / "ledger.sqlite", tmp_path / "backup")
    finish(book, key(account, 1))
    receipt = receipt_for(book)
    shutil.copy(tmp_path / "backup", tmp_path / "ledger.sqlite")
    restored = open_book(tmp_path)
    finish(restored, key(account, 1))
    restored.take_receipt(receipt)
    recover(restored, SITE)
    assert len(restored.charges()) == 2
    assert left(restored, account) == {"study": (4, 0)}, "four rounds are still to come, whatever the first has cost"


def test_the_head_says_nothing_of_promises(book: Ledger, account: str) -> None:
    from client.ledger.summary import summarise

    finish(book, key(account, 1))
    before = summarise(book.fold())
    book.earmark([earmark(account)])
    assert summarise(book.fold()) == before
    assert json.loads(json.loads(book.signed_head())["head"])["row"] == 5
