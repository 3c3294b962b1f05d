# SPDX-License-Identifier: Apache-2.0
"""Folders and files that only their owner can read, and files that are never overwritten.

A private folder has mode 0700, a private file 0600. `write_new` puts a file in its place in one step and only when nothing is there:
a crash leaves the whole file or none, and two writers cannot replace each other's key.
"""

from __future__ import annotations

import os
import stat
import uuid
from contextlib import suppress
from pathlib import Path

from common.errors import InputError, StorageError
from common.files import sync_folder


def private_folder(folder: Path) -> None:
    """Make `folder` (mode 0700) if it is not there. Raises InputError when others may enter one that is in use."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if stat.S_IMODE(folder.stat().st_mode) & 0o077:
            if any(folder.iterdir()):
                raise InputError(f"{folder}: others may enter this folder, and keys belong in it; run chmod 700 on it")
            folder.chmod(0o700)
    except FileExistsError as error:
        raise InputError(f"{folder}: is a file; name a folder") from error
    except OSError as error:
        raise StorageError(f"{folder}: cannot be used ({error.strerror or error}); check the path and its permissions") from error


def write_new(path: Path, content: bytes) -> bool:
    """Write a private file (mode 0600, durable) unless `path` exists; whether it was written. Raises StorageError."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
        sync_folder(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; check free space and permissions") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return True


def replace_private(path: Path, content: bytes) -> None:
    """Write a private file in one step, in place of what is there. Raises StorageError."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        if write_new(temporary, content):
            temporary.replace(path)
            sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; check free space and permissions") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def read_private(path: Path, what: str = "key") -> bytes:
    """The content of a private file. Raises StorageError when it is missing or others may read it."""
    try:
        content, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise StorageError(f"{path}: cannot read the {what} ({error.strerror or error})") from error
    if stat.S_ISREG(mode) and mode & 0o077:
        raise StorageError(f"{path}: others may read this {what}; run chmod 600 on it")
    return content
