# SPDX-License-Identifier: Apache-2.0
"""A site that charges, "trains" and releases rounds until it is killed; started again, it goes on.

Arguments: folder, number of rounds, and `early` to break the order on purpose: the reply leaves before `releasing`. What leaves is
appended to `wire` as lines "round bytes", synced.
"""

import os
import sys
import time
from pathlib import Path

from client.ledger.book import Ledger
from common.privacy.charges import Outbox, Standing
from tests.client.ledger.support import EVENT, account_in, key, open_book


def send(folder: Path, number: int, reply: bytes) -> None:
    wire = os.open(folder / "wire", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(wire, f"{number} {reply.hex()}\n".encode())
    os.fsync(wire)
    os.close(wire)


def run_round(folder: Path, book: Ledger, account: str, number: int, early: bool) -> None:
    outbox = Outbox(folder / "outbox")
    one = key(account, number, message=str(number))
    if book.reserve(one, EVENT, 10) is not Standing.RESEND:
        (folder / "reserved").write_text(str(number))  # the first gradient comes after this
        reply = os.urandom(16)  # fresh noise in each attempt
        time.sleep(0.001)
        if early:
            send(folder, number, reply)
            time.sleep(0.03)
        book.releasing(one, outbox.store(one, reply))
    stored = outbox.load(one)
    if stored is None:
        raise SystemExit("a released reply is missing")
    send(folder, number, stored)
    book.sent(one)


def main() -> None:
    folder, rounds, early = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3:] == ["early"]
    done = folder / "done"
    start = int(done.read_text()) if done.exists() else 0
    book = open_book(folder)
    account = account_in(book)
    print("ready", flush=True)
    for number in range(start, rounds):
        run_round(folder, book, account, number, early)
        temporary = folder / "done.part"
        temporary.write_text(str(number + 1))
        temporary.replace(done)


if __name__ == "__main__":
    main()
