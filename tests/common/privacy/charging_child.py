# SPDX-License-Identifier: Apache-2.0
"""A site that charges, "trains" and releases rounds until it is killed; started again, it goes on. Used by test_charges_kill.

Arguments: folder, number of rounds. What leaves is appended to `wire` as lines "round sha256 attempt-bytes", fsynced.
"""

import hashlib
import os
import sys
import time
from pathlib import Path

from common.privacy.charges import ChargeFile, ChargeKey, Outbox, Standing

EVENT = '{"noise_multiplier":1.0,"type":"GaussianDpEvent"}'


def send(folder: Path, number: int, reply: bytes) -> None:
    wire = os.open(folder / "wire", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(wire, f"{number} {reply.hex()}\n".encode())
    os.fsync(wire)
    os.close(wire)


def run_round(folder: Path, number: int) -> None:
    book, outbox = ChargeFile(folder / "charges.jsonl"), Outbox(folder / "outbox")
    key = ChargeKey("account", "study", "run", number, hashlib.sha256(str(number).encode()).hexdigest())
    if book.reserve(key, EVENT, 10) is not Standing.RESEND:
        reply = os.urandom(16)  # fresh noise in each attempt
        time.sleep(0.002)
        book.releasing(key, outbox.store(key, reply))
    stored = outbox.load(key)
    if stored is None:
        raise SystemExit("a released reply is missing")
    send(folder, number, stored)
    book.sent(key)


def main() -> None:
    folder, rounds = Path(sys.argv[1]), int(sys.argv[2])
    done = folder / "done"
    start = int(done.read_text()) if done.exists() else 0
    print("ready", flush=True)
    for number in range(start, rounds):
        run_round(folder, number)
        temporary = folder / "done.part"
        temporary.write_text(str(number + 1))
        temporary.replace(done)


if __name__ == "__main__":
    main()
