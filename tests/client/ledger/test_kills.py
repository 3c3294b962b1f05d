# SPDX-License-Identifier: Apache-2.0
"""Real processes, really killed: what is spent is never under-counted, and every update that left has exactly one charge."""

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.privacy.charges import State
from tests.client.ledger.support import open_book

CHILD = Path(__file__).with_name("charging_child.py")
ROOT = Path(__file__).resolve().parents[3]


def start_child(folder: Path, rounds: int, *more: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, str(CHILD), str(folder), str(rounds), *more]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def left(folder: Path) -> dict[int, set[str]]:
    """What left, for each round."""
    sent: dict[int, set[str]] = {}
    for line in (folder / "wire").read_text().splitlines() if (folder / "wire").exists() else ():
        number, reply = line.split()
        sent.setdefault(int(number), set()).add(reply)
    return sent


def check(folder: Path) -> None:
    """At any moment: one charge for each round that began or left, and one reply for each that left."""
    found = open_book(folder).charges()
    charges = {charge.key.round: charge for charge in found}
    assert len(charges) == len(found)
    begun = int((folder / "reserved").read_text() or 0) if (folder / "reserved").exists() else -1
    assert set(charges) >= set(range(begun + 1)), "charged before the first gradient"
    for number, replies in left(folder).items():
        (reply,) = replies
        assert charges[number].state in (State.RELEASING, State.SENT)
        assert charges[number].reply_sha256 == hashlib.sha256(bytes.fromhex(reply)).hexdigest()


def kill_children(folder: Path, kills: int, *more: str) -> None:
    chance = random.Random(7)
    for _ in range(kills):
        with start_child(folder, 100_000, *more) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0.0, 0.05))
            assert child.poll() is None, "a stale lock, or a round that cannot go on"
            child.kill()
        check(folder)
    finished = int((folder / "done").read_text()) + 1
    with start_child(folder, finished) as child:
        child.communicate(timeout=60)
        assert child.returncode == 0
    check(folder)
    assert sorted(left(folder)) == list(range(finished))
    assert all(charge.state is State.SENT for charge in open_book(folder).charges())
    open_book(folder).check_storage()


def test_fifteen_kills(tmp_path: Path) -> None:
    kill_children(tmp_path, 15)


@pytest.mark.slow
def test_two_hundred_kills(tmp_path: Path) -> None:
    kill_children(tmp_path, 200)


def test_sending_before_releasing_is_found(tmp_path: Path) -> None:
    """The check itself: a site in the wrong order sends two different updates under one charge sooner or later."""
    with pytest.raises((AssertionError, ValueError)):
        kill_children(tmp_path, 12, "early")
