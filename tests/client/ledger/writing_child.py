# SPDX-License-Identifier: Apache-2.0
"""Uses a ledger under the shim and says after each step what it was told. Arguments: folder, script, and how to break it."""

import os
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import client.ledger.database as database
from client.ledger.book import Ledger
from client.ledger.rows import EarmarkEntry
from common.privacy.charges import Line, Standing
from tests.client.ledger.support import EVENT, account_in, digest, key, open_book, receipt_for


def say(folder: Path, text: str) -> None:
    """A line in the file `told`: it is in the log between the writes before it and those after it."""
    told = os.open(folder / "told", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(told, text.encode() + b"\n")
    os.close(told)


def whole_rounds(folder: Path, book: Ledger) -> None:
    account = account_in(book)
    promise(folder, book, account, 5)
    for number in range(3):
        one = key(account, number)
        assert book.reserve(one, EVENT, 10) is Standing.NEW
        say(folder, f"{number} reserved")
        if number == 1:
            book.settle_to_zero(one)
            say(folder, f"{number} settled")
            continue
        book.releasing(one, digest("reply"))
        say(folder, f"{number} releasing")
        book.take_receipt(receipt_for(book))
        say(folder, "receipt")
        book.sent(one)
        say(folder, f"{number} sent")
    promise(folder, book, account, 7)


def promise(folder: Path, book: Ledger, account: str, count: int) -> None:
    book.earmark([EarmarkEntry(account, Line.TRAINING, "study", EVENT, count, 1)])
    say(folder, f"promise {count}")


def ask_again(folder: Path, book: Ledger) -> None:
    one = key(account_in(book), 0)
    assert book.reserve(one, EVENT, 10) is Standing.RETRY
    say(folder, "0 reserved")


def upgrade(folder: Path, book: Ledger) -> None:
    """The first use of a ledger that an earlier release wrote."""
    assert book.fold().number == 8
    say(folder, "0 sent")


def broken(way: str) -> None:
    """Take one of the promises away."""
    if way == "deaf to the folder":
        Ledger.make_durable = database.LedgerFile.make_durable = lambda self: None  # type: ignore[method-assign,attr-defined]
    elif way:
        connect = database.LedgerFile._connect

        def weaker(file: database.LedgerFile) -> AbstractContextManager:
            connection = connect(file)
            connection.execute(f"PRAGMA synchronous={way}")
            return connection

        database.LedgerFile._connect = weaker  # type: ignore[method-assign]


if __name__ == "__main__":
    where = Path(sys.argv[1])
    broken(sys.argv[3])
    {"whole": whole_rounds, "again": ask_again, "upgrade": upgrade}[sys.argv[2]](where, open_book(where))
