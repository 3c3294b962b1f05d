# SPDX-License-Identifier: Apache-2.0
"""Power cuts at every point: what a real process wrote and synced is logged by a shim, and the disk is rebuilt from what must have lasted.

SQLite's `synchronous=FULL` with a deleted journal is not enough: the deletion of the journal is not synced, the journal comes back and
takes an acknowledged reservation away. That case must be seen by this test; so must weaker ones.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from random import Random

import pytest

from client.ledger.book import Ledger
from common.errors import StorageError
from common.privacy.charges import Line, Standing, State
from tests.client.ledger.disk import Disk, File, Operation, put, read_log
from tests.client.ledger.support import EVENT, account_in, key, open_book

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
WORDS = re.compile(rb"(receipt|promise [0-9]+|[0-9]+ [a-z]+)\n")
ORDER = [State.RESERVED, State.RELEASING, State.SENT]
COMPILER = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
pytestmark = pytest.mark.skipif(COMPILER is None or not sys.platform.startswith("linux"), reason="needs a C compiler on Linux")


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    library = tmp_path_factory.mktemp("shim") / "disk_shim.so"
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-O1", "-o", library, HERE / "disk_shim.c", "-ldl"], check=True)
    return library


def logged(shim: Path, folder: Path, script: str, way: str = "") -> list[Operation]:
    """Let a child use the ledger in `folder`; what it did to the folder's files."""
    with tempfile.NamedTemporaryFile() as log:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "LD_PRELOAD": str(shim),
            "WARDROUND_SHIM_FOLDER": str(folder),
            "WARDROUND_SHIM_LOG": log.name,
        }
        subprocess.run([sys.executable, HERE / "writing_child.py", folder, script, way], env=environment, check=True, timeout=60)
        return list(read_log(Path(log.name).read_bytes()))


def is_word(operation: Operation) -> bool:
    """What the child says; a checksum of SQLite may end with the byte of a newline."""
    return operation.kind == "w" and WORDS.fullmatch(operation.data) is not None


class Told:
    """What the process was told so far; it acts on that, so it must never be lost."""

    def __init__(self) -> None:
        self.states: dict[int, State] = {}
        self.receipts = 0
        self.promise = 0

    def hear(self, words: str) -> None:
        if words == "receipt":
            self.receipts += 1
        elif words.startswith("promise"):
            self.promise = int(words.split()[1])
        else:
            number, state = words.split()
            self.states[int(number)] = State(state)

    def check(self, book: Ledger) -> None:
        found = {charge.key.round: charge.state for charge in book.charges()}
        for number, state in self.states.items():
            if state is State.SETTLED:
                assert found.get(number) is State.SETTLED, f"round {number}"
            elif found.get(number) is not State.SETTLED:
                assert number in found and ORDER.index(found[number]) >= ORDER.index(state), f"round {number} was {state}"
            else:
                assert (number, state) == (1, State.RESERVED), "only round 1 is settled"
        promised = book.fold().earmarks.standing("study", Line.TRAINING)
        assert (promised.count if promised else 0) >= self.promise, "a promise was lost"
        assert len(book.receipts()) >= self.receipts
        book.check_storage()
        book.check_not_behind()


def cut_everywhere(disk: Disk, operations: list[Operation], told: Told, place: Path, seeds: int) -> int:
    """Cut the power after each operation and look. Returns how many disks were looked at."""
    looked = 0
    for operation in operations:
        disk.apply(operation)
        if is_word(operation):
            told.hear(operation.data.decode().strip())
        for chance in (None, *(Random(1000 * looked + seed) for seed in range(seeds))):
            files = disk.after_power_cut(chance)
            put({name: content for name, content in files.items() if name != "told"}, place)
            told.check(open_book(place))
            book = open_book(place)
            assert book.reserve(key(account_in(book), 99), EVENT, 1) is Standing.NEW, "it goes on"
            shutil.rmtree(place)
            looked += 1
    return looked


def test_no_acknowledged_row_is_lost_by_a_power_cut_at_any_point(shim: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    disk = Disk(folder)
    told = Told()
    assert cut_everywhere(disk, logged(shim, folder, "whole"), told, tmp_path / "after", seeds=1) > 200
    assert told.states == {0: State.SENT, 1: State.SETTLED, 2: State.SENT} and (told.receipts, told.promise) == (2, 7)


@pytest.mark.parametrize("way", ["FULL", "NORMAL", "OFF"])
def test_anything_weaker_loses_what_was_acknowledged(shim: Path, tmp_path: Path, way: str) -> None:
    folder = tmp_path / "site"
    folder.mkdir()
    operations = logged(shim, folder, "whole", way)
    with pytest.raises((AssertionError, StorageError)):
        cut_everywhere(Disk(folder), operations, Told(), tmp_path / "after", seeds=0)


def killed_before_its_last_sync(shim: Path, tmp_path: Path) -> tuple[Disk, Path]:
    """A process commits its first reservation and is killed before it has synced the deletion of the journal."""
    folder, after = tmp_path / "site", tmp_path / "after"
    folder.mkdir()
    disk = Disk(folder)
    for operation in logged(shim, folder, "whole"):
        disk.apply(operation)
        deleted = operation.kind == "u" and operation.text.endswith("ledger.sqlite-journal")
        visible = {name: file.content(everything=True) for name, file in disk.names.items() if name != "told"}
        if deleted and b'"state":"reserved"' in visible["ledger.sqlite"]:
            break
    put(visible, after)
    second = Disk(after)
    for name, file in disk.names.items():
        if name != "told":
            second.add(after / name, File(bytearray(file.lasting), list(file.pending)))
    second.lasting_names = {name: second.names.get(name, file) for name, file in disk.lasting_names.items()}
    assert "ledger.sqlite-journal" in second.lasting_names, "a power cut now would bring it back"
    return second, after


def test_an_answer_from_another_process_lasts_too(shim: Path, tmp_path: Path) -> None:
    """RETRY and RESEND rest on a row that another process wrote: it must last before the caller hears of it."""
    disk, folder = killed_before_its_last_sync(shim, tmp_path)
    told = Told()
    cut_everywhere(disk, logged(shim, folder, "again"), told, tmp_path / "cut", seeds=1)
    assert told.states == {0: State.RESERVED}


def test_without_that_sync_the_answer_may_be_lost(shim: Path, tmp_path: Path) -> None:
    disk, folder = killed_before_its_last_sync(shim, tmp_path)
    operations = logged(shim, folder, "again", "deaf to the folder")
    with pytest.raises(AssertionError, match="round 0 was reserved"):
        cut_everywhere(disk, operations, Told(), tmp_path / "cut", seeds=0)
