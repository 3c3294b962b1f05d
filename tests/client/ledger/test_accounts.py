# SPDX-License-Identifier: Apache-2.0
"""An account is its patients: no new name, no smaller cohort and no other study gives a patient a fresh budget."""

from pathlib import Path

import pytest

from client.ledger.book import Ledger
from common.errors import RefusedError
from common.privacy.charges import Line, Outbox, Standing, State
from tests.client.ledger.support import DELTA, EVENT, digest, finish, key, open_book


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return open_book(tmp_path)


def train(book: Ledger, *patients: str, delta: float = DELTA) -> str:
    return book.register({Line.TRAINING: patients}, delta)


def rounds_paid(book: Ledger, account: str, line: Line = Line.TRAINING) -> list[int]:
    return sorted(charge.key.round for charge in book.history(account, line))


def test_the_same_patients_are_the_same_account_and_write_no_row(book: Ledger, tmp_path: Path) -> None:
    account = train(book, "a", "b", "c")
    assert train(book, "c", "a", "b") == train(book, "b") == train(open_book(tmp_path), "a", "c") == account
    assert len(book.rows()) == 1


def test_patients_who_share_nobody_pay_apart(book: Ledger) -> None:
    one, other = train(book, "a", "b"), train(book, "c")
    assert one != other
    finish(book, key(one, 1))
    assert rounds_paid(book, one) == [1] and rounds_paid(book, other) == []


def test_a_grown_cohort_keeps_its_account_and_its_history(book: Ledger) -> None:
    account = train(book, "a", "b")
    finish(book, key(account, 1))
    assert train(book, "b", "new") == account
    assert rounds_paid(book, train(book, "new")) == [1], "whoever joins an account has paid what it paid"


def test_accounts_that_come_to_overlap_have_paid_what_both_paid(book: Ledger, tmp_path: Path) -> None:
    one, other, third = train(book, "a", "b"), train(book, "c", "d"), train(book, "e")
    finish(book, key(one, 1))
    finish(book, key(other, 2, run="other run"))
    merged = train(book, "b", "c")
    assert merged == one, "the oldest gives its name"
    for handle in (book, open_book(tmp_path)):
        for account in (one, other, train(handle, "d")):
            assert rounds_paid(handle, account) == [1, 2]
        assert rounds_paid(handle, third) == []
    assert train(book, "a", "e") == one and rounds_paid(book, third) == [1, 2]


def test_a_round_is_the_same_round_after_its_account_was_merged(book: Ledger, tmp_path: Path) -> None:
    older, account = train(book, "a"), train(book, "b")
    outbox = Outbox(tmp_path / "outbox")
    book.reserve(key(account, 1), EVENT, 10)
    book.releasing(key(account, 1), outbox.store(key(account, 1), b"reply"))
    merged = train(book, "a", "b")
    assert merged == older
    assert book.reserve(key(merged, 1), EVENT, 10) is Standing.RESEND
    assert outbox.load(key(merged, 1)) == b"reply"
    book.sent(key(merged, 1))
    assert [charge.state for charge in book.charges()] == [State.SENT]


def test_lines_are_apart_unless_one_patient_stands_on_both(book: Ledger) -> None:
    account = book.register({Line.TRAINING: ["a", "b"], Line.HELD_OUT: ["c"]}, DELTA)
    finish(book, key(account, 1))
    finish(book, key(account, 2, line=Line.HELD_OUT))
    assert (rounds_paid(book, account), rounds_paid(book, account, Line.HELD_OUT)) == ([1], [2])
    book.register({Line.TRAINING: ["c"]}, DELTA)  # another split: c has measured, and now trains
    assert rounds_paid(book, account) == rounds_paid(book, account, Line.HELD_OUT) == [1, 2]


def test_delta_is_that_of_the_first_registration_and_the_smaller_after_a_merge(book: Ledger) -> None:
    one, other = train(book, "a", delta=1e-5), train(book, "b", delta=1e-6)
    assert (book.delta(one), book.delta(other)) == (1e-5, 1e-6)
    train(book, "a", delta=1e-7)
    assert book.delta(one) == 1e-5, "constant"
    train(book, "a", "b")
    assert book.delta(one) == book.delta(other) == 1e-6


def test_another_message_for_a_merged_account_is_still_a_conflict(book: Ledger) -> None:
    account = train(book, "a")
    finish(book, key(account, 1))
    with pytest.raises(RefusedError, match="ROUND_CONFLICT"):
        book.reserve(key(train(book, "a", "b"), 1, message="other"), EVENT, 10)


def test_pseudonyms_need_the_key() -> None:
    from client.ledger.accounts import pseudonyms

    assert pseudonyms(b"1" * 32, ["a"]) != pseudonyms(b"2" * 32, ["a"])
    (one,) = pseudonyms(b"1" * 32, ["a", "a"])
    assert len(one) == 32 and digest("a") != one.hex()
