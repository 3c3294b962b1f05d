# SPDX-License-Identifier: Apache-2.0
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.crypto.private_files import private_folder, read_private, replace_private, write_new
from common.errors import InputError, StorageError


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_files_and_folders_are_the_owners_alone(tmp_path: Path) -> None:
    private_folder(tmp_path / "a" / "b")
    assert mode(tmp_path / "a" / "b") == 0o700
    assert write_new(tmp_path / "key", b"secret")
    replace_private(tmp_path / "other", b"x")
    assert (mode(tmp_path / "key"), mode(tmp_path / "other")) == (0o600, 0o600)
    assert read_private(tmp_path / "key") == b"secret"


def test_an_empty_folder_is_closed_and_one_in_use_is_left_alone(tmp_path: Path) -> None:
    empty, used = tmp_path / "empty", tmp_path / "used"
    for folder in (empty, used):
        folder.mkdir()
        folder.chmod(0o755)
    (used / "file").touch()
    private_folder(empty)
    assert mode(empty) == 0o700
    with pytest.raises(InputError, match="chmod 700"):
        private_folder(used)
    assert mode(used) == 0o755


def test_a_file_in_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is a file"):
        private_folder(tmp_path / "file")


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"old")
    assert not write_new(path, b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_of_many_writers_one_wins(tmp_path: Path) -> None:
    path = tmp_path / "key"
    contents = [bytes([number]) * 5000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda content: write_new(path, content), contents))
    assert won.count(True) == 1
    assert path.read_bytes() == contents[won.index(True)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["key"]


def test_a_replaced_file_is_private_even_if_the_old_one_was_not(tmp_path: Path) -> None:
    path = tmp_path / "server.crt"
    path.write_bytes(b"old")
    path.chmod(0o644)
    replace_private(path, b"new")
    assert (path.read_bytes(), mode(path)) == (b"new", 0o600)


def test_a_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    write_new(path, b"secret")
    path.chmod(0o640)
    with pytest.raises(StorageError, match="chmod 600"):
        read_private(path)
    with pytest.raises(StorageError, match="cannot read the passphrase"):
        read_private(tmp_path / "none", "passphrase")


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot write"):
        write_new(tmp_path / "none" / "key", b"x")
