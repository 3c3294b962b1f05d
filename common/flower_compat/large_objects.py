# SPDX-License-Identifier: Apache-2.0
"""The folder of large objects beside the SuperLink's database: one file each, under the SHA-256 of its bytes.

Our own processes on the same machine read and write the files there, instead of having them copied through the SuperLink: the gateway for
the sites, the ServerApp for itself. A writer has checked the digest; then it sends the SuperLink `IN_A_FILE` in place of the bytes.
"""

from __future__ import annotations

import hashlib
import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

OBJECTS_SUFFIX: Final = ".objects"
LARGE_BYTES: Final = 1 << 16
IN_A_FILE: Final = b"\x00file"
"""What stands for a large object in the database and on the way there; no object can look like this."""


def objects_folder(database: Path) -> Path:
    """Where the SuperLink with this database keeps large objects."""
    return Path(f"{database}{OBJECTS_SUFFIX}")


def write_object(folder: Path, object_id: str, content: bytes | memoryview) -> int:
    """Put an object into its place in one step; returns the number of the file (`file_number`).

    Raises ValueError when it is not what its id says, OSError when it cannot be written; then nothing is left behind.
    """
    if hashlib.sha256(content).hexdigest() != object_id:
        raise ValueError(f"Object ID {object_id[:64]} does not match content hash")
    return write_own_object(folder, object_id, content)


def write_own_object(folder: Path, object_id: str, content: bytes | memoryview) -> int:
    """The same for an object whose id this process has computed from these bytes. Raises OSError."""
    temporary = folder / f"{object_id}.{os.getpid()}.{threading.get_ident()}"
    try:
        temporary.write_bytes(content)
        number = temporary.stat().st_ino
        temporary.replace(folder / object_id)
        return number
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise


def file_number(path: Path) -> int | None:
    """What tells a file from a later one of the same name; None when there is none."""
    try:
        return path.stat().st_ino
    except FileNotFoundError:
        return None


def remove_if_same(path: Path, number: int) -> None:
    """Remove a file unless another has come in its place."""
    if file_number(path) == number:
        path.unlink(missing_ok=True)
