# SPDX-License-Identifier: Apache-2.0
"""Backups: whole or not there, never over anything, consistent while everything runs."""

import io
import os
import sqlite3
import tarfile
import threading
from contextlib import closing
from pathlib import Path

import pytest

from common.archive import Archive, Manifest, back_up, restore, snapshot
from common.crypto.sealed_stream import LEAST_COST, SealedWriter
from common.errors import InputError, StorageError

PASSPHRASE = b"correct horse battery"
MANIFEST = Manifest(kind="site", name="north", version="0", created=1e9)


def save(path: Path, *files: tuple[str, bytes], manifest: Manifest = MANIFEST) -> Path:
    def fill(archive: Archive) -> None:
        for name, content in files:
            archive.add(name, content)

    assert back_up(path, PASSPHRASE, manifest, fill, LEAST_COST) == path.stat().st_size
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("exists", [True, False])
def test_what_goes_in_comes_out(tmp_path: Path, exists: bool) -> None:
    big = os.urandom(3_000_000)
    file = save(tmp_path / "backup", ("a", b"1"), ("b/c/d.bin", big), ("b/e", b""))
    assert file.stat().st_mode & 0o777 == 0o600
    if exists:
        (tmp_path / "new").mkdir()
    assert restore(file, PASSPHRASE, "site", tmp_path / "new") == MANIFEST
    assert tree(tmp_path / "new") == {"a": b"1", "b/c/d.bin": big, "b/e": b""}
    for path in (tmp_path / "new", *(tmp_path / "new").rglob("*")):
        assert path.stat().st_mode & 0o077 == 0, path
    assert {path.name for path in tmp_path.iterdir()} == {"backup", "new"}, "nothing else is left"


def test_nothing_is_ever_overwritten(tmp_path: Path) -> None:
    file = save(tmp_path / "backup", ("a", b"1"))
    before = file.read_bytes()
    with pytest.raises(InputError, match="never written over"):
        save(file, ("a", b"2"))
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="never written over"):
        save(tmp_path / "link")
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "mine").write_text("mine")
    for folder, why in ((tmp_path / "used", "not empty"), (file, "is a file"), (tmp_path / "no" / "where", "does not exist")):
        with pytest.raises(InputError, match=why):
            restore(file, PASSPHRASE, "site", folder)
    with pytest.raises(InputError, match="does not exist"):
        save(tmp_path / "no" / "backup")
    assert file.read_bytes() == before and tree(tmp_path / "used") == {"mine": b"mine"}


def test_a_file_that_came_meanwhile_stays(tmp_path: Path) -> None:
    def fill(archive: Archive) -> None:
        (tmp_path / "backup").write_text("somebody else's")

    with pytest.raises(StorageError, match="File exists"):
        back_up(tmp_path / "backup", PASSPHRASE, MANIFEST, fill, LEAST_COST)
    assert tree(tmp_path) == {"backup": b"somebody else's"}


def test_without_hard_links_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(_source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted", str(target))

    monkeypatch.setattr(os, "link", link)
    file = save(tmp_path / "backup", ("a", b"1"))
    restore(file, PASSPHRASE, "site", tmp_path / "new")
    assert tree(tmp_path) == {"backup": file.read_bytes(), "new/a": b"1"}


def full_disk(_archive: Archive) -> None:
    raise OSError(28, "No space left on device")


def test_a_backup_that_fails_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No space left on device; check free space"):
        back_up(tmp_path / "backup", PASSPHRASE, MANIFEST, full_disk, LEAST_COST)
    assert tree(tmp_path) == {}


def test_a_restore_that_fails_leaves_nothing(tmp_path: Path) -> None:
    file = save(tmp_path / "backup", ("a", b"1"), ("b", os.urandom(3_000_000)))
    whole = file.read_bytes()

    def complete(_folder: Path, _manifest: Manifest) -> None:
        raise StorageError("the ledger is damaged")

    with pytest.raises(StorageError, match="ledger is damaged"):
        restore(file, PASSPHRASE, "site", tmp_path / "new", complete)
    with pytest.raises(StorageError, match="the passphrase is wrong"):
        restore(file, b"another passphrase", "site", tmp_path / "new")
    for damaged in (whole[:-1], whole[: len(whole) // 2], whole[:-5] + b"12345", whole[:2_000_000] + b"x" + whole[2_000_001:]):
        file.write_bytes(damaged)
        with pytest.raises(StorageError, match="damaged or was changed"):
            restore(file, PASSPHRASE, "site", tmp_path / "new")
    with pytest.raises(InputError, match="cannot be read"):
        restore(tmp_path / "nothing", PASSPHRASE, "site", tmp_path / "new")
    assert set(tree(tmp_path)) == {"backup"} and not (tmp_path / "new").exists()


def test_a_backup_of_the_other_side_says_so(tmp_path: Path) -> None:
    file = save(tmp_path / "backup", manifest=MANIFEST.model_copy(update={"kind": "server", "name": "https://c"}))
    with pytest.raises(InputError, match=r"is a backup of a server \(https://c\); use `wardround-server restore`"):
        restore(file, PASSPHRASE, "site", tmp_path / "new")


def raw(path: Path, *entries: tarfile.TarInfo) -> Path:
    """An archive that nobody of ours writes."""
    with path.open("wb") as file:
        sealed = SealedWriter(file, PASSPHRASE, LEAST_COST)
        with tarfile.open(fileobj=sealed, mode="w|") as tar:
            for entry in entries:
                content = MANIFEST.model_dump_json().encode() if entry.name == "wardround-backup.json" else b"evil"
                entry.size = len(content) if entry.isreg() else 0
                tar.addfile(entry, io.BytesIO(content))
        sealed.finish()
    return path


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, "/etc/passwd"
    return entry


@pytest.mark.parametrize(
    "entry",
    [
        tarfile.TarInfo("../outside"),
        tarfile.TarInfo("/tmp/outside"),
        tarfile.TarInfo("a/../../outside"),
        special("link", tarfile.SYMTYPE),
        special("hard", tarfile.LNKTYPE),
        special("pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda entry: entry.name,
)
def test_only_files_inside_the_folder_are_unpacked(tmp_path: Path, entry: tarfile.TarInfo) -> None:
    file = raw(tmp_path / "backup", tarfile.TarInfo("wardround-backup.json"), entry)
    with pytest.raises(StorageError, match="no file that belongs in a backup"):
        restore(file, PASSPHRASE, "site", tmp_path / "new")
    assert set(tree(tmp_path)) == {"backup"}


def test_an_archive_of_another_format_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a newer Wardround wrote it"):
        restore(raw(tmp_path / "backup", tarfile.TarInfo("manifest-of-2030.json")), PASSPHRASE, "site", tmp_path / "new")


def test_lines_are_cut_at_the_last_whole_one(tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"one\ntwo\nthr")

    def fill(archive: Archive) -> None:
        archive.add_lines("log", tmp_path / "log")
        archive.add_lines("none", tmp_path / "none")
        archive.add_file("none", tmp_path / "none")
        archive.add_database("none", tmp_path / "none")

    back_up(tmp_path / "backup", PASSPHRASE, MANIFEST, fill, LEAST_COST)
    restore(tmp_path / "backup", PASSPHRASE, "site", tmp_path / "new")
    assert tree(tmp_path / "new") == {"log": b"one\ntwo\n"}


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_database_is_one_moment_of_it(tmp_path: Path, mode: str) -> None:
    """Both rows of a pair are written in one transaction; a copy has both or neither, while a writer never rests."""
    path, done = tmp_path / "data.sqlite", threading.Event()
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"PRAGMA journal_mode={mode}")
        database.execute("CREATE TABLE pair (a INTEGER, b TEXT)")
        database.execute("PRAGMA user_version = 7")

    def write() -> None:
        with closing(sqlite3.connect(path, timeout=60, isolation_level=None)) as database:
            number = 0
            while not done.wait(0.001):
                number += 1
                database.execute("BEGIN IMMEDIATE")
                database.executemany("INSERT INTO pair VALUES (?, ?)", [(number, "x" * 500), (-number, "y" * 500)])
                database.execute("COMMIT")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        copies = [snapshot(path) for _ in range(15)]
    finally:
        done.set()
        writer.join()
    sizes = []
    for number, content in enumerate(copies):
        copy = tmp_path / f"copy-{number}"
        copy.write_bytes(content)
        with closing(sqlite3.connect(copy)) as database:
            count, total = database.execute("SELECT count(*), coalesce(sum(a), 0) FROM pair").fetchone()
            assert (count % 2, total) == (0, 0)
            assert database.execute("PRAGMA user_version").fetchone() == (7,)
            sizes.append(count)
    assert sizes == sorted(sizes)


def test_a_damaged_database_is_not_backed_up(tmp_path: Path) -> None:
    path = tmp_path / "data.sqlite"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StorageError, match=r"data\.sqlite: cannot be backed up"):
        snapshot(path)
