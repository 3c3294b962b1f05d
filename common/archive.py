# SPDX-License-Identifier: Apache-2.0
"""A backup: one encrypted file (`common.crypto.sealed_stream`) with a manifest and the files of a folder inside, as a tar.

    back_up    into a new file, never over another; whole under its name or not there at all; while everything runs
    restore    into a new or empty folder; whole under its name or not there at all

Databases are copied with SQLite's backup interface, append-only files up to their last whole line, everything else as it is: it is only
ever replaced in one step. What comes out of a backup is authentic: nobody without the passphrase can change or shorten it unseen.
"""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
import tarfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Final, Literal, Protocol, cast

from pydantic import BaseModel, ConfigDict, ValidationError

from common.crypto.sealed_stream import COST, SealedReader, SealedWriter
from common.errors import InputError, StorageError
from common.files import sync_folder

MANIFEST: Final = "wardround-backup.json"
LOCK_TIMEOUT_SECONDS: Final = 120.0
_BLOCK_BYTES: Final = 1 << 20


class Manifest(BaseModel):
    """What a backup is of; the first thing in it. `created` in seconds since the epoch, `version` that of the program that wrote it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    kind: Literal["site", "server"]
    name: str
    version: str
    created: float


class Archive(Protocol):
    """What a backup is filled through. Every method raises StorageError; a file that is not there is left out."""

    def add(self, name: str, content: bytes) -> None:
        """A file with this content."""

    def add_file(self, name: str, path: Path) -> None:
        """A file that is only ever replaced as a whole."""

    def add_lines(self, name: str, path: Path) -> None:
        """An append-only file, up to its last whole line."""

    def add_database(self, name: str, path: Path) -> None:
        """An SQLite database as it is at one moment."""


def back_up(path: Path, passphrase: bytes, manifest: Manifest, fill: Callable[[Archive], None], cost: int = COST) -> int:
    """Write a backup to `path`, filled by `fill`; its size in bytes. Raises InputError when something is there, StorageError."""
    if os.path.lexists(path):
        raise InputError(f"{path}: is there already; a backup is never written over another file, name a new one")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{path}: its folder does not exist; make it first")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    with _storage(f"cannot write {path}"):
        try:
            with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                sealed = SealedWriter(file, passphrase, cost)
                with tarfile.open(fileobj=cast(IO[bytes], sealed), mode="w|", bufsize=_BLOCK_BYTES) as tar:
                    archive = _Tar(tar)
                    archive.add(MANIFEST, manifest.model_dump_json().encode())
                    fill(archive)
                sealed.finish()
                file.flush()
                os.fsync(file.fileno())
            _name_it(temporary, path)
            return path.stat().st_size
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def restore(
    path: Path, passphrase: bytes, kind: str, folder: Path, complete: Callable[[Path, Manifest], None] = lambda _folder, _manifest: None
) -> Manifest:
    """Unpack a backup of that kind into `folder`, which is not there or empty. `complete` works on the files before they get their place.

    Raises InputError (no backup, of another kind, a folder with something in it), StorageError (wrong passphrase, damage, disk full);
    then nothing is left.
    """
    _check_empty(folder)
    temporary = folder.absolute().parent / f".{folder.absolute().name}.{uuid.uuid4().hex}.part"
    with _storage(f"cannot restore into {folder}"):
        try:
            temporary.mkdir(mode=0o700)
            manifest = _unpack(path, passphrase, kind, temporary)
            complete(temporary, manifest)
            _sync_all(temporary)
            temporary.replace(folder)
            sync_folder(folder.absolute().parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return manifest


class _Tar:
    """An archive in a tar stream."""

    def __init__(self, tar: tarfile.TarFile) -> None:
        self._tar = tar

    def add(self, name: str, content: bytes) -> None:
        self._add(name, io.BytesIO(content), len(content))

    def add_file(self, name: str, path: Path) -> None:
        with suppress(FileNotFoundError), path.open("rb") as file:
            self._add(name, file, os.fstat(file.fileno()).st_size)

    def add_lines(self, name: str, path: Path) -> None:
        with suppress(FileNotFoundError):
            content = path.read_bytes()
            self.add(name, content[: content.rfind(b"\n") + 1])

    def add_database(self, name: str, path: Path) -> None:
        if path.exists():
            self.add(name, snapshot(path))

    def _add(self, name: str, file: IO[bytes], size_bytes: int) -> None:
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = size_bytes, 0o600
        self._tar.addfile(entry, file)


def snapshot(path: Path) -> bytes:
    """An SQLite database as it is at one moment, whoever writes to it; checked by SQLite. Raises StorageError."""
    try:
        with (
            closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=LOCK_TIMEOUT_SECONDS)) as source,
            closing(sqlite3.connect(":memory:")) as copy,
        ):
            source.backup(copy)
            damage = [str(line) for (line,) in copy.execute("PRAGMA integrity_check(3)") if line != "ok"]
            content = copy.serialize()
    except sqlite3.Error as error:
        raise StorageError(f"{path}: cannot be backed up ({error}); restore it from an earlier backup") from error
    if damage:
        raise StorageError(f"{path}: is damaged ({'; '.join(damage)}), so it is not backed up; restore it from an earlier backup")
    return content


def _name_it(temporary: Path, path: Path) -> None:
    """Give a finished file its name, unless something has come there meanwhile. Raises FileExistsError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # no hard links on this file system (a memory stick): take the name first, then replace our own empty file
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        temporary.replace(path)
    sync_folder(path.absolute().parent)


def _unpack(path: Path, passphrase: bytes, kind: str, folder: Path) -> Manifest:
    with _opened(path) as file:
        sealed = SealedReader(file, passphrase, str(path))
        try:
            with tarfile.open(fileobj=cast(IO[bytes], sealed), mode="r|", bufsize=_BLOCK_BYTES) as tar:
                manifest = _manifest(tar, kind, path)
                while (entry := tar.next()) is not None:
                    _write(folder, entry, tar.extractfile(entry) if entry.isreg() else None)
            sealed.finish()
        except (tarfile.TarError, EOFError) as error:
            raise StorageError(f"{path}: its content cannot be read ({type(error).__name__})") from error
    return manifest


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = path.open("rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); name a file that `backup` wrote") from error
    with file:
        yield file


def _manifest(tar: tarfile.TarFile, kind: str, path: Path) -> Manifest:
    entry = tar.next()
    content = tar.extractfile(entry) if entry is not None and entry.isreg() and entry.name == MANIFEST else None
    try:
        manifest = Manifest.model_validate_json(b"" if content is None else content.read())
    except ValidationError as error:
        raise InputError(f"{path}: a backup of another format; a newer Wardround wrote it, restore it with that") from error
    if manifest.kind != kind:
        command = {"site": "wardround-client", "server": "wardround-server"}[manifest.kind]
        raise InputError(f"{path}: is a backup of a {manifest.kind} ({manifest.name}); use `{command} restore`")
    return manifest


def _write(folder: Path, entry: tarfile.TarInfo, content: IO[bytes] | None) -> None:
    """One file, readable by its owner only, synced. Raises StorageError for anything that is no file inside the folder."""
    name = PurePosixPath(entry.name)
    if content is None or not entry.isreg() or name.is_absolute() or ".." in name.parts or not name.parts:
        raise StorageError(f"backup: {entry.name[:80]!r} is no file that belongs in a backup")
    path = folder / name
    for parent in reversed(path.relative_to(folder).parents[:-1]):
        (folder / parent).mkdir(mode=0o700, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        shutil.copyfileobj(content, file, _BLOCK_BYTES)
        file.flush()
        os.fsync(file.fileno())


def _check_empty(folder: Path) -> None:
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(f"{folder}: is a file; name a new folder")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"{folder}: is not empty; a backup is never restored over anything, name a new folder")
    if not folder.absolute().parent.is_dir():
        raise InputError(f"{folder}: the folder that it lies in does not exist; make it first")


def _sync_all(folder: Path) -> None:
    for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        sync_folder(inner)


@contextmanager
def _storage(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"{what}: {error.strerror or error}; check free space and permissions") from error
