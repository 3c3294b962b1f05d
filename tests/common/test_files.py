# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys
import time
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import IO

import pytest

from common.errors import StorageError
from common.files import append_durably, atomic_file, build_once, cache_folder, locked, write_atomic

ROOT = Path(__file__).resolve().parents[2]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_written_whole_with_its_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "f.txt"
    write_atomic(path, "grün")
    assert path.read_bytes() == "grün".encode()
    write_atomic(path, b"\0")
    assert path.read_bytes() == b"\0"
    assert names(path.parent) == ["f.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomic(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as file:
        file.write(b"new")
        raise ZeroDivisionError
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["f"]


def test_a_disk_that_says_no_leaves_the_old_file_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_atomic(path, "old")
    program = (
        "import resource, sys\nfrom pathlib import Path\nfrom common.errors import StorageError\nfrom common.files import write_atomic\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n    write_atomic(Path(sys.argv[1]), b'x' * 5000)\nexcept StorageError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True, cwd=ROOT)
    assert str(path) in done.stdout
    assert "check free space" in done.stdout
    assert path.read_text(encoding="utf-8") == "old"
    assert names(tmp_path) == ["f"]


def test_lines_are_added_whole_and_a_torn_one_goes_first(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    append_durably(path, b"one\n")
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open("ab") as file:
        file.write(b"cut off by a cra")
    append_durably(path, b"two\nthree\n")
    assert path.read_bytes() == b"one\ntwo\nthree\n"


def test_on_a_full_disk_no_line_is_added(tmp_path: Path) -> None:
    """Several lines of which only some have room: none of them may count."""
    path = tmp_path / "lines"
    append_durably(path, b"one\n")
    script = (
        "import resource, signal, sys\n"
        "from pathlib import Path\n"
        "from common.errors import StorageError\n"
        "from common.files import append_durably\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    append_durably(Path(sys.argv[1]), b'a decision\\n' * 200)\n"
        "except StorageError as error:\n"
        "    print(error)\n"
    )
    said = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"cannot write {path}: ") and "free space" in said
    assert path.read_bytes() == b"one\n"


def test_a_file_in_the_place_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write"):
        write_atomic(tmp_path / "f" / "g", "x")


def build_slowly(folder: Path, together: Barrier) -> None:
    def build(file: IO[bytes]) -> None:
        with (folder / "built").open("a") as log:
            log.write("once\n")
        time.sleep(0.2)
        file.write(b"content")

    together.wait(30)
    assert build_once(folder / "f", build).read_bytes() == b"content"


def test_several_processes_build_once(tmp_path: Path) -> None:
    context = get_context("spawn")
    together = context.Barrier(3)
    processes = [context.Process(target=build_slowly, args=(tmp_path, together)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "built").read_text(encoding="utf-8") == "once\n"


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    program = "import os, sys\nfrom pathlib import Path\nfrom common.files import locked\nwith locked(Path(sys.argv[1])): os._exit(9)"
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "l")], check=False, cwd=ROOT)
    assert done.returncode == 9
    with locked(tmp_path / "l"):
        pass


def test_the_cache_can_be_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path / "mine"))
    assert cache_folder() == tmp_path / "mine"
    monkeypatch.delenv("WARDROUND_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "wardround"
