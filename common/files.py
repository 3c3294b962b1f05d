# SPDX-License-Identifier: Apache-2.0
"""Files that are either wholly written or not there at all."""

from __future__ import annotations

import glob
import hashlib
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from common.errors import StorageError

CACHE_VARIABLE = "WARDROUND_CACHE"


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable (a rename is not, until its folder is synced)."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears under `path` only when the block ended without an error.

    Written beside its final place, fsynced, renamed, folder fsynced. Raises StorageError with the path when the disk says no.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; check free space and permissions") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_atomic(path: Path, *parts: bytes | str) -> None:
    """Write the parts, one after the other, to `path` in one step that a crash cannot cut in half."""
    with atomic_file(path) as file:
        for part in parts:
            file.write(part.encode() if isinstance(part, str) else part)


def sha256_of(parts: Iterable[bytes | memoryview]) -> str:
    """Digest, in hexadecimal, of the parts one after the other."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def cut_torn_line(path: Path) -> None:
    """Remove a last line that a crash cut off, so that the next one does not run into it."""
    with path.open("rb+") as file:
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)


def append_durably(path: Path, content: bytes) -> None:
    """Add whole lines to a file (made with mode 0600) for whose lock the caller cares: all of them, durable when this returns, or none.

    What a crash left of a line is cut off first. Raises StorageError.
    """
    try:
        is_new = not path.exists()
        if not is_new:
            cut_torn_line(path)
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
            file.seek(0, os.SEEK_END)
            write_durably(file, content)
        if is_new:
            sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; check free space and permissions") from error


def write_durably(file: IO[bytes], content: bytes) -> None:
    """Write at the end of an unbuffered file and sync; on any error it is as long as before, so `content` is there whole or not at all."""
    before = file.tell()
    try:
        written = 0
        while written < len(content):
            written += file.write(content[written:])
        os.fsync(file.fileno())
    except OSError:
        with suppress(OSError):
            file.truncate(before)
        raise


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file `path`; it ends with the process, so it is never stale."""
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise StorageError(f"cannot open {path}: {error.strerror or error}; check the folder and its permissions") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def build_once(path: Path, build: Callable[[IO[bytes]], None]) -> Path:
    """Return `path`, made by `build` if it is not there yet; several processes at once make it once."""
    if not path.exists():
        with locked(path.with_name(path.name + ".lock")):
            if not path.exists():
                remove_leftovers(path)
                with atomic_file(path) as file:
                    build(file)
    return path


def remove_leftovers(path: Path) -> None:
    """Delete what a killed writer of `path` left behind. Only for the one who holds the lock on it."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        leftover.unlink(missing_ok=True)


def cache_folder() -> Path:
    """Where things that can be made again are kept: `WARDROUND_CACHE`, else the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wardround"
