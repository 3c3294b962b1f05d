# SPDX-License-Identifier: Apache-2.0
import hashlib
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError, RefusedError, StorageError
from common.files import locked
from common.privacy.accountant import UNPROTECTED_JSON, epsilon_pld, event_to_json, poisson_gaussian
from common.privacy.charges import ChargeFile, ChargeKey, Standing, State

EVENT = '{"noise_multiplier":1.0,"type":"GaussianDpEvent"}'
CHILD = Path(__file__).with_name("charging_child.py")
ROOT = Path(__file__).resolve().parents[3]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def key(number: int = 0, message: str = "message", run: str = "run") -> ChargeKey:
    return ChargeKey("account", "study", run, number, digest(message))


@pytest.fixture
def book(tmp_path: Path) -> ChargeFile:
    return ChargeFile(tmp_path / "charges.jsonl")


def states(book: ChargeFile) -> list[State]:
    return [charge.state for charge in book.charges()]


def test_the_life_of_a_charge(book: ChargeFile) -> None:
    assert book.reserve(key(), EVENT, 10) is Standing.NEW
    assert book.reserve(key(), EVENT, 10) is Standing.RETRY
    book.releasing(key(), digest("reply"))
    assert book.reserve(key(), EVENT, 10) is Standing.RESEND
    book.sent(key())
    assert book.reserve(key(), EVENT, 10) is Standing.RESEND
    (charge,) = book.charges()
    assert (charge.state, charge.steps, charge.reply_sha256) == (State.SENT, 10, digest("reply"))
    assert len(book.spent()) == 1


def test_saying_the_same_again_is_harmless(book: ChargeFile) -> None:
    book.reserve(key(), EVENT, 1)
    for _ in range(2):
        book.releasing(key(), digest("reply"))
    for _ in range(2):
        book.sent(key())
    assert states(book) == [State.SENT]


def test_a_charge_without_a_gradient_costs_nothing_and_may_be_made_again(book: ChargeFile) -> None:
    book.reserve(key(), EVENT, 1)
    book.settle_to_zero(key())
    assert book.spent() == [] and states(book) == [State.SETTLED]
    assert book.reserve(key(), EVENT, 1) is Standing.NEW
    assert len(book.spent()) == 1


def test_only_the_book_that_reserved_may_settle(book: ChargeFile, tmp_path: Path) -> None:
    book.reserve(key(), EVENT, 1)
    with pytest.raises(RefusedError, match="CHARGE_STATE"):
        ChargeFile(tmp_path / "charges.jsonl").settle_to_zero(key())
    book.reserve(key(), EVENT, 1)  # a retry: the first attempt may have computed gradients
    with pytest.raises(RefusedError, match="its charge stays"):
        book.settle_to_zero(key())
    assert len(book.spent()) == 1


def test_the_same_round_with_another_message_or_mechanism_is_a_conflict(book: ChargeFile) -> None:
    book.reserve(key(), EVENT, 1)
    with pytest.raises(RefusedError, match="ROUND_CONFLICT"):
        book.reserve(key(message="other"), EVENT, 1)
    with pytest.raises(RefusedError, match="ROUND_CONFLICT"):
        book.reserve(key(), UNPROTECTED_JSON, 1)
    assert book.reserve(key(run="resumed elsewhere", message="other"), EVENT, 1) is Standing.NEW


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
def test_illegal_moves_are_refused_and_leave_no_row(book: ChargeFile, tmp_path: Path, before: list[str], move: str) -> None:
    moves = {
        "reserve": lambda: book.reserve(key(), EVENT, 1),
        "releasing": lambda: book.releasing(key(), digest("reply")),
        "releasing other": lambda: book.releasing(key(), digest("another reply")),
        "sent": lambda: book.sent(key()),
        "settle_to_zero": lambda: book.settle_to_zero(key()),
    }
    for name in before:
        moves[name]()
    rows = len((tmp_path / "charges.jsonl").read_bytes()) if before else 0
    with pytest.raises(RefusedError, match="CHARGE_STATE"):
        moves[move]()
    assert len((tmp_path / "charges.jsonl").read_bytes()) == rows


def test_what_is_spent_goes_to_the_accountant(book: ChargeFile) -> None:
    event = event_to_json(poisson_gaussian(0.15, 2.321, 10))
    for number in range(10):
        book.reserve(key(number, run="run a"), event, 10)
    assert epsilon_pld(book.spent(), 1e-5) == pytest.approx(3.0, abs=0.01)
    assert book.spent_outside(key().account, "study", "run a") == []
    assert len(book.spent_outside(key().account, "study", "run b")) == 10
    book.reserve(key(0, run="run b"), UNPROTECTED_JSON, 1)
    assert epsilon_pld(book.spent(), 1e-5) == math.inf


def test_another_object_sees_what_was_written(book: ChargeFile, tmp_path: Path) -> None:
    twin = ChargeFile(tmp_path / "charges.jsonl")
    assert twin.charges() == []
    book.reserve(key(), EVENT, 3)
    assert twin.reserve(key(), EVENT, 3) is Standing.RETRY
    twin.releasing(key(), digest("reply"))
    assert book.reserve(key(), EVENT, 3) is Standing.RESEND


def test_only_new_rows_are_read(book: ChargeFile, monkeypatch) -> None:
    for number in range(50):
        book.reserve(key(number), EVENT, 1)
    sizes = []
    pread = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, offset: sizes.append(size) or pread(file, size, offset))
    book.reserve(key(50), EVENT, 1)
    assert sizes == [0]


def test_rows_are_chained_and_each_is_synced_before_the_caller_hears_of_it(book: ChargeFile, tmp_path: Path, monkeypatch) -> None:
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.fstat(file).st_size) or fsync(file))
    path = tmp_path / "charges.jsonl"
    for number in range(3):
        book.reserve(key(number), EVENT, 1)
        assert synced[-1] == path.stat().st_size
    lines = path.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[0])["previous"] == "0" * 64
    assert json.loads(lines[2])["previous"] == hashlib.sha256(lines[1]).hexdigest()


@pytest.mark.parametrize("place", ["first", "middle", "last"])
def test_a_changed_row_is_named(book: ChargeFile, tmp_path: Path, place: str) -> None:
    for number in range(5):
        book.reserve(key(number), EVENT, 7)
    path = tmp_path / "charges.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    row = {"first": 0, "middle": 2, "last": 4}[place]
    lines[row] = lines[row].replace(b'"steps":7', b'"steps":x')
    path.write_bytes(b"".join(lines))
    with pytest.raises(StorageError, match=f"row {row}"):
        ChargeFile(path).spent()


def test_a_believable_change_a_missing_and_a_doubled_row_are_found(book: ChargeFile, tmp_path: Path) -> None:
    for number in range(5):
        book.reserve(key(number), EVENT, 7)
    path = tmp_path / "charges.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    less = lines[1].replace(b'"steps":7', b'"steps":1')
    for content, row in (
        ([lines[0], less, *lines[2:]], 2),
        ([*lines[:2], *lines[3:]], 2),
        ([*lines[:3], lines[2], *lines[3:]], 3),
    ):
        path.write_bytes(b"".join(content))
        with pytest.raises(StorageError, match=f"row {row}"):
            ChargeFile(path).reserve(key(9), EVENT, 1)


def test_a_file_that_became_shorter_stops_the_book(book: ChargeFile, tmp_path: Path) -> None:
    for number in range(2):
        book.reserve(key(number), EVENT, 7)
    path = tmp_path / "charges.jsonl"
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(StorageError, match="shorter"):
        book.spent()


def test_a_disk_that_says_no_charges_nothing_that_was_acknowledged(book: ChargeFile, tmp_path: Path, monkeypatch) -> None:
    book.reserve(key(0), EVENT, 1)
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[: len(data) // 2]))
    with pytest.raises(StorageError, match="free some space"):
        book.reserve(key(1), EVENT, 1)
    monkeypatch.undo()
    assert len(book.spent()) == 1
    assert book.reserve(key(1), EVENT, 1) is Standing.NEW
    assert len(ChargeFile(tmp_path / "charges.jsonl").spent()) == 2


def test_a_folder_that_cannot_be_written_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((StorageError, NotADirectoryError)):
        ChargeFile(tmp_path / "file" / "charges.jsonl").reserve(key(), EVENT, 1)


@pytest.mark.parametrize(
    "change",
    [{"account": ""}, {"study_id": ""}, {"run_id": ""}, {"round": -1}, {"message_sha256": "abc"}],
    ids=str,
)
def test_senseless_keys_are_refused(change: dict) -> None:
    with pytest.raises(InputError, match="charge"):
        ChargeKey(**({"account": "a", "study_id": "s", "run_id": "r", "round": 0, "message_sha256": "0" * 64} | change))


@pytest.mark.parametrize(("event", "steps"), [("", 1), ("[]", 1), ('{"b": 1}', 1), (EVENT, 0)])
def test_senseless_mechanisms_are_refused(book: ChargeFile, event: str, steps: int) -> None:
    with pytest.raises(InputError, match="charge"):
        book.reserve(key(), event, steps)


MOVES = st.lists(
    st.tuples(st.sampled_from(["reserve", "releasing", "sent", "settle_to_zero"]), st.integers(0, 3), st.booleans(), st.floats(0, 1)),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(MOVES)
def test_crashes_at_any_byte_never_lose_what_was_acknowledged(moves: list[tuple[str, int, bool, float]]) -> None:
    """Any sequence of moves; some crash in their write: the file keeps any part of the new row and a new process goes on."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "charges.jsonl"
        book = ChargeFile(path)
        known: dict[int, State] = {}  # what callers were told
        for name, number, crashes, kept in moves:
            size = path.stat().st_size if path.exists() else 0
            try:
                if name == "reserve":
                    answer = book.reserve(key(number), EVENT, 1)
                    after = known.get(number, State.RESERVED) if answer is not Standing.NEW else State.RESERVED
                elif name == "releasing":
                    book.releasing(key(number), digest("reply"))
                    after = State.RELEASING
                else:
                    getattr(book, name)(key(number))
                    after = {"sent": State.SENT, "settle_to_zero": State.SETTLED}[name]
            except RefusedError:
                assert path.exists() is False or path.stat().st_size == size
                continue
            if crashes:  # the caller never heard the answer
                grown = path.stat().st_size - size
                cut = round(kept * grown)
                os.truncate(path, size + cut)
                book = ChargeFile(path)
                if cut < grown:
                    continue
            known[number] = after
        found = {charge.key.round: charge.state for charge in ChargeFile(path).charges()}
        assert found == known
        assert len(ChargeFile(path).spent()) == sum(state is not State.SETTLED for state in known.values())


def test_threads_and_objects_at_once(tmp_path: Path) -> None:
    path = tmp_path / "charges.jsonl"

    def work(worker: int) -> Counter:
        own = ChargeFile(path)
        return Counter(own.reserve(key(number), EVENT, 1) for number in range(20))

    with ThreadPoolExecutor(4) as pool:
        answers = sum(pool.map(work, range(4)), Counter())
    assert answers == {Standing.NEW: 20, Standing.RETRY: 60}
    assert len(ChargeFile(path).spent()) == 20


def test_a_writer_waits_for_the_lock(tmp_path: Path) -> None:
    path = tmp_path / "charges.jsonl"
    with ThreadPoolExecutor(1) as pool:
        with locked(tmp_path / "charges.jsonl.lock"):
            waiting = pool.submit(ChargeFile(path).reserve, key(), EVENT, 1)
            time.sleep(0.2)
            assert not waiting.done() and not path.exists()
        assert waiting.result(timeout=10) is Standing.NEW


def start_child(folder: Path, rounds: int) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen([sys.executable, str(CHILD), str(folder), str(rounds)], env=environment, stdout=subprocess.PIPE, text=True)


def check_wire(folder: Path, rounds: int) -> None:
    """Each update that left has exactly one charge, and always the same bytes."""
    sent: dict[int, set[str]] = {}
    for line in (folder / "wire").read_text().splitlines():
        number, reply = line.split()
        sent.setdefault(int(number), set()).add(reply)
    charges = ChargeFile(folder / "charges.jsonl").charges()
    assert sorted(sent) == sorted(charge.key.round for charge in charges) == list(range(rounds))
    for charge in charges:
        (reply,) = sent[charge.key.round]
        assert charge.state is State.SENT
        assert charge.reply_sha256 == hashlib.sha256(bytes.fromhex(reply)).hexdigest()


def test_two_processes_at_once(tmp_path: Path) -> None:
    children = [start_child(tmp_path / str(number), 5) for number in range(2) if (tmp_path / str(number)).mkdir() is None]
    shared = tmp_path / "shared"
    shared.mkdir()
    script = (
        "import sys; from pathlib import Path; from tests.common.privacy.test_charges import key, EVENT\n"
        "from common.privacy.charges import ChargeFile\n"
        "book = ChargeFile(Path(sys.argv[1]))\n"
        "print(sum(book.reserve(key(n), EVENT, 1) == 'new' for n in range(60)))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
    racers = [
        subprocess.Popen([sys.executable, "-c", script, str(shared / "charges.jsonl")], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    new = [int(racer.communicate(timeout=60)[0]) for racer in racers]
    assert sum(new) == 60 == len(ChargeFile(shared / "charges.jsonl").charges())
    for number, child in enumerate(children):
        child.communicate(timeout=60)
        assert child.returncode == 0
        check_wire(tmp_path / str(number), 5)


def test_twenty_kills_of_a_real_process(tmp_path: Path) -> None:
    rounds, kills = 10_000, 0
    chance = random.Random(7)
    while kills < 20:
        with start_child(tmp_path, rounds) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            time.sleep(chance.uniform(0.0, 0.06))
            assert child.poll() is None
            child.kill()
            kills += 1
    finished = int((tmp_path / "done").read_text()) + 1
    with start_child(tmp_path, finished) as child:
        child.communicate(timeout=60)
        assert child.returncode == 0
    check_wire(tmp_path, finished)
