# SPDX-License-Identifier: Apache-2.0
"""The ledger as a charge book: who may charge what, and that its rows cannot be changed unseen."""

import math
import os
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from client.ledger.book import Ledger
from client.ledger.database import LedgerFile
from common.crypto.secrets import Secret
from common.errors import InputError, RefusedError, StorageError
from common.privacy.accountant import UNPROTECTED_JSON, epsilon_pld, event_to_json, poisson_gaussian
from common.privacy.charges import Line, Standing, State
from tests.client.ledger.support import DELTA, EVENT, account_in, digest, finish, key, open_book

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def book(tmp_path: Path) -> Ledger:
    return open_book(tmp_path)


@pytest.fixture
def account(book: Ledger) -> str:
    return account_in(book)


def states(book: Ledger) -> list[State]:
    return [charge.state for charge in book.charges()]


def test_the_life_of_a_charge(book: Ledger, account: str) -> None:
    one = key(account)
    assert book.reserve(one, EVENT, 10) is Standing.NEW
    assert book.reserve(one, EVENT, 10) is Standing.RETRY
    book.releasing(one, digest("reply"))
    assert book.reserve(one, EVENT, 10) is Standing.RESEND
    book.sent(one)
    assert book.reserve(one, EVENT, 10) is Standing.RESEND
    (charge,) = book.charges()
    assert (charge.state, charge.steps, charge.reply_sha256) == (State.SENT, 10, digest("reply"))
    assert len(book.spent()) == 1
    assert [row.number for row in book.rows()] == [1, 2, 3, 4], "one row an event: patients, reserve, releasing, sent"


def test_saying_the_same_again_is_harmless(book: Ledger, account: str) -> None:
    book.reserve(key(account), EVENT, 1)
    for _ in range(2):
        book.releasing(key(account), digest("reply"))
    for _ in range(2):
        book.sent(key(account))
    assert states(book) == [State.SENT] and len(book.rows()) == 4


def test_a_charge_without_a_gradient_costs_nothing_and_may_be_made_again(book: Ledger, account: str) -> None:
    book.reserve(key(account), EVENT, 1)
    book.settle_to_zero(key(account))
    assert book.spent() == [] and states(book) == [State.SETTLED]
    assert book.reserve(key(account), EVENT, 1) is Standing.NEW
    assert len(book.spent()) == 1


def test_only_the_book_that_reserved_may_settle(book: Ledger, account: str, tmp_path: Path) -> None:
    book.reserve(key(account), EVENT, 1)
    with pytest.raises(RefusedError, match="CHARGE_STATE"):
        open_book(tmp_path).settle_to_zero(key(account))
    book.reserve(key(account), EVENT, 1)  # a retry: the first attempt may have computed gradients
    with pytest.raises(RefusedError, match="its charge stays"):
        book.settle_to_zero(key(account))
    assert len(book.spent()) == 1


def test_the_same_round_with_another_message_or_mechanism_is_a_conflict(book: Ledger, account: str) -> None:
    book.reserve(key(account), EVENT, 1)
    with pytest.raises(RefusedError, match="ROUND_CONFLICT"):
        book.reserve(key(account, message="other"), EVENT, 1)
    with pytest.raises(RefusedError, match="ROUND_CONFLICT"):
        book.reserve(key(account), UNPROTECTED_JSON, 1)
    with pytest.raises(RefusedError, match="ROUND_CONFLICT"):
        book.reserve(key(book.register({Line.TRAINING: ["somebody else"]}, DELTA)), EVENT, 1)
    assert book.reserve(key(account, run="another run", message="other"), EVENT, 1) is Standing.NEW
    assert book.reserve(key(account, line=Line.HELD_OUT), EVENT, 1) is Standing.NEW, "the held-out line has its own charge in a round"


@pytest.mark.parametrize(
    ("before", "move"),
    [
        ([], "releasing"),
        ([], "sent"),
        (["reserve"], "sent"),
        (["reserve", "releasing"], "settle_to_zero"),
        (["reserve", "releasing"], "releasing other"),
        (["reserve", "releasing", "sent"], "releasing other"),
        (["reserve", "releasing", "sent"], "settle_to_zero"),
        (["reserve", "settle_to_zero"], "releasing"),
        (["reserve", "settle_to_zero"], "sent"),
    ],
    ids=str,
)
def test_illegal_moves_are_refused_and_leave_no_row(book: Ledger, account: str, before: list[str], move: str) -> None:
    one = key(account)
    moves = {
        "reserve": lambda: book.reserve(one, EVENT, 1),
        "releasing": lambda: book.releasing(one, digest("reply")),
        "releasing other": lambda: book.releasing(one, digest("another reply")),
        "sent": lambda: book.sent(one),
        "settle_to_zero": lambda: book.settle_to_zero(one),
    }
    for name in before:
        moves[name]()
    rows = book.rows()
    with pytest.raises(RefusedError, match="CHARGE_STATE"):
        moves[move]()
    assert book.rows() == rows


def test_what_is_spent_goes_to_the_accountant(book: Ledger, account: str) -> None:
    event = event_to_json(poisson_gaussian(0.15, 2.321, 10))
    for number in range(10):
        book.reserve(key(account, number, run="run a"), event, 10)
    assert epsilon_pld(book.spent(), 1e-5) == pytest.approx(3.0, abs=0.01)
    assert book.spent_outside(key(account, run="run a")) == []
    assert len(book.spent_outside(key(account, run="run b"))) == 10
    assert book.spent_outside(key(account, run="run b", line=Line.HELD_OUT)) == [], "other patients"
    book.reserve(key(account, run="run b"), UNPROTECTED_JSON, 1)
    assert epsilon_pld(book.spent(), 1e-5) == math.inf


def test_an_account_without_patients_cannot_be_charged(book: Ledger) -> None:
    with pytest.raises(InputError, match="register the cohort"):
        book.reserve(key("no such account"), EVENT, 1)
    with pytest.raises(InputError, match="without patients"):
        book.register({Line.TRAINING: []}, DELTA)
    assert book.rows() == []


def test_reading_makes_no_file(book: Ledger, tmp_path: Path) -> None:
    assert book.charges() == [] and book.rows() == []
    book.check_storage()
    book.check_not_behind()
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_the_sites_own(book: Ledger, account: str, tmp_path: Path) -> None:
    assert stat.S_IMODE((tmp_path / "ledger.sqlite").stat().st_mode) == 0o600
    content = (tmp_path / "ledger.sqlite").read_bytes()
    assert not any(patient.encode() in content for patient in ("p1", "p2", "p3"))


def test_another_object_sees_what_was_written_and_reads_only_that(book: Ledger, account: str, tmp_path: Path, monkeypatch) -> None:
    twin = open_book(tmp_path)
    assert twin.charges() == []
    for number in range(20):
        book.reserve(key(account, number), EVENT, 3)
    assert twin.reserve(key(account, 19), EVENT, 3) is Standing.RETRY
    twin.releasing(key(account, 19), digest("reply"))
    taken = []
    take = book._fold.take
    monkeypatch.setattr(book._fold, "take", lambda row, patients: (taken.append(row.number), take(row, patients)))
    assert book.reserve(key(account, 19), EVENT, 3) is Standing.RESEND
    assert taken == [22]


def change(path: Path, statement: str) -> None:
    """Change the ledger behind its back, and put the triggers back as they were."""
    with closing(sqlite3.connect(path)) as database:
        triggers = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in triggers:
            database.execute(f"DROP TRIGGER {name}")
        database.execute(statement)
        for _, sql in triggers:
            database.execute(sql)
        database.commit()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE rows SET content = 'x' WHERE number = 1",
        "DELETE FROM rows",
        "INSERT OR REPLACE INTO rows SELECT 1, content, previous, hash, mac FROM rows WHERE number = 2",
        "INSERT INTO rows SELECT 9, content, previous, hash, mac FROM rows WHERE number = 2",
        "UPDATE patients SET line = 'held-out'",
        "DELETE FROM patients",
        "INSERT INTO patients VALUES (1, 'training', x'00')",
    ],
)
def test_sqlite_itself_refuses_to_change_the_past(book: Ledger, account: str, tmp_path: Path, statement: str) -> None:
    book.reserve(key(account), EVENT, 1)
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as database, pytest.raises(sqlite3.IntegrityError, match=r"rows|patients"):
        database.execute(statement)
    assert len(open_book(tmp_path).charges()) == 1


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("""UPDATE rows SET content = replace(content, '"steps":7', '"steps":1') WHERE number = 3""", "row 3"),
        ("UPDATE rows SET mac = hex(randomblob(32)) WHERE number = 6", "this site's key"),
        ("DELETE FROM rows WHERE number = 3", "row 4"),
        ("UPDATE rows SET number = number + 10 WHERE number = 6", "row 16"),
        ("DELETE FROM patients WHERE line = 'held-out'", "patients of account"),
        ("UPDATE patients SET pseudonym = zeroblob(32) WHERE line = 'held-out'", "patients of account"),
    ],
)
def test_a_change_by_somebody_with_the_file_is_found(book: Ledger, account: str, tmp_path: Path, statement: str, said: str) -> None:
    for number in range(5):
        book.reserve(key(account, number), EVENT, 7)
    change(tmp_path / "ledger.sqlite", statement)
    with pytest.raises(StorageError, match=said):
        open_book(tmp_path).reserve(key(account, 9), EVENT, 1)


def test_a_whole_chain_without_the_key_is_found(tmp_path: Path) -> None:
    """Who can write the file but has not the key can make a chain, not the MACs."""
    forger = open_book(tmp_path, Secret(b"x" * 32))
    finish(forger, key(account_in(forger)))
    with pytest.raises(StorageError, match="this site's key"):
        open_book(tmp_path).charges()


def test_a_missing_trigger_is_found(book: Ledger, account: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as database:
        database.execute("DROP TRIGGER rows_delete")
    with pytest.raises(StorageError, match="rows_delete"):
        book.reserve(key(account), EVENT, 1)


@pytest.mark.parametrize("content", [b"no database", b""])
def test_another_file_in_its_place_is_found(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "ledger.sqlite").write_bytes(content)
    with pytest.raises(StorageError, match="ledger"):
        open_book(tmp_path).charges()


def test_an_old_copy_put_in_place_while_in_use_stops_the_book(book: Ledger, account: str, tmp_path: Path) -> None:
    old = (tmp_path / "ledger.sqlite").read_bytes()
    book.reserve(key(account), EVENT, 7)
    (tmp_path / "ledger.sqlite").write_bytes(old)
    with pytest.raises(RefusedError, match="LEDGER_BEHIND"):
        book.reserve(key(account, 1), EVENT, 7)
    (tmp_path / "ledger.sqlite").unlink()
    with pytest.raises(RefusedError, match="LEDGER_BEHIND"):
        book.charges()


def test_a_disk_that_says_no_charges_nothing_and_the_book_goes_on(book: Ledger, account: str, monkeypatch) -> None:
    book.reserve(key(account, 0), EVENT, 1)

    def connect(file: LedgerFile) -> sqlite3.Connection:
        database = original(file)
        pages = database.execute("PRAGMA page_count").fetchone()[0]
        database.execute(f"PRAGMA max_page_count = {pages}")  # SQLITE_FULL, as with a full disk
        return database

    original = LedgerFile._connect
    monkeypatch.setattr(LedgerFile, "_connect", connect)
    with pytest.raises(StorageError, match="free space"):
        for number in range(1, 200):
            book.reserve(key(account, number, message="x" * number), EVENT, 1)
    monkeypatch.undo()
    acknowledged = len(book.spent())
    assert book.reserve(key(account, 1000), EVENT, 1) is Standing.NEW
    assert len(book.spent()) == acknowledged + 1 == number + 1


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="ledger"):
        account_in(open_book(tmp_path / "file"))


@pytest.mark.parametrize(("event", "steps"), [("", 1), ("[]", 1), ('{"b": 1}', 1), (EVENT, 0)])
def test_senseless_mechanisms_are_refused(book: Ledger, account: str, event: str, steps: int) -> None:
    with pytest.raises(InputError, match="charge"):
        book.reserve(key(account), event, steps)


def test_threads_and_objects_at_once(tmp_path: Path) -> None:
    account = account_in(open_book(tmp_path))

    def work(worker: int) -> Counter:
        own = open_book(tmp_path)
        return Counter(own.reserve(key(account, number), EVENT, 1) for number in range(10))

    with ThreadPoolExecutor(4) as pool:
        answers = sum(pool.map(work, range(4)), Counter())
    assert answers == {Standing.NEW: 10, Standing.RETRY: 30}
    assert len(open_book(tmp_path).spent()) == 10


def test_one_ledger_is_made_however_many_begin_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(6) as pool:
        accounts = set(pool.map(lambda _: account_in(open_book(tmp_path)), range(6)))
    assert len(accounts) == 1 and len(open_book(tmp_path).rows()) == 1


def test_two_processes_at_once(tmp_path: Path) -> None:
    account = account_in(open_book(tmp_path))
    script = (
        "import sys; from pathlib import Path; from tests.client.ledger.support import key, open_book, EVENT\n"
        "book = open_book(Path(sys.argv[1]))\n"
        "print(sum(book.reserve(key(sys.argv[2], n), EVENT, 1) == 'new' for n in range(40)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-c", script, str(tmp_path), account]
    racers = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    new = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert sum(new) == 40 == len(open_book(tmp_path).charges())


def test_a_writer_waits_for_another(book: Ledger, account: str, tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = threading.Thread(target=book.reserve, args=(key(account), EVENT, 1))
        waiting.start()
        time.sleep(0.2)
        assert waiting.is_alive()
        other.execute("ROLLBACK")
        waiting.join(10)
    assert len(book.charges()) == 1


def test_rows_say_what_the_docs_say(book: Ledger, account: str) -> None:
    finish(book, key(account))
    (patients, reserved, *_), previous = book.rows(), "0" * 64
    assert '"kind":"PatientsEntry"' in patients.content and f'"delta":{DELTA}' in patients.content
    assert '"state":"reserved"' in reserved.content
    for number, row in enumerate(book.rows(), 1):
        assert (row.number, row.previous) == (number, previous)
        assert row.hash == digest(f"{number}\n{previous}\n{row.content}")
        previous = row.hash
