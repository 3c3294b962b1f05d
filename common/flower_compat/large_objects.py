# SPDX-License-Identifier: Apache-2.0
"""The folder of large objects beside the SuperLink's database: one file each, under the SHA-256 of its bytes.

Our own processes on the same machine read and write the files there, instead of having them copied through the SuperLink: the gateway for
the sites, the ServerApp for itself. A writer has checked the digest; then it sends the SuperLink `IN_A_FILE` in place of the bytes.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Final, Self

OBJECTS_SUFFIX: Final = ".objects"
LARGE_BYTES: Final = 1 << 7
"""Objects from this size on lie in files: all but the smallest, for reading one there is no call to the SuperLink."""
_NUMBERS: Final = count()
_DIGEST: Final = re.compile("[0-9a-f]{64}")
IN_A_FILE: Final = b"\x00file"
"""What stands for a large object in the database and on the way there; no object can look like this."""


def objects_folder(database: Path) -> Path:
    """Where the SuperLink with this database keeps large objects."""
    return Path(f"{database}{OBJECTS_SUFFIX}")


def is_digest(text: str) -> bool:
    """Whether it can be the name of an object, and so of a file."""
    return _DIGEST.fullmatch(text) is not None


def write_object(folder: Path, object_id: str, content: bytes | memoryview) -> int:
    """Put an object into its place in one step; returns the number of the file (`file_number`).

    Raises ValueError when it is not what its id says, OSError when it cannot be written; then nothing is left behind.
    """
    with ObjectWriter(folder, object_id) as writer:
        writer.write(content)
        return writer.finish()


def write_own_object(folder: Path, object_id: str, content: bytes | memoryview) -> int:
    """The same for an object whose id this process has computed from these bytes. Raises OSError."""
    with ObjectWriter(folder, object_id) as writer:
        writer.write_trusted(content)
        return writer.finish(is_trusted=True)


class ObjectWriter:
    """Puts an object into its place when it is whole; until then, and if it never is, there is nothing in that place."""

    def __init__(self, folder: Path, object_id: str) -> None:
        """Raises ValueError for what is no digest: it names a file."""
        if not is_digest(object_id):
            raise ValueError(f"Object ID {object_id[:64]} is no digest")
        self._place = folder / object_id
        self._digest = hashlib.sha256()
        self._temporary = folder / f"{object_id}.{os.getpid()}.{next(_NUMBERS)}"

    def __enter__(self) -> Self:
        """Raises OSError."""
        self._file = self._temporary.open("xb", buffering=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        with suppress(OSError):
            self._temporary.unlink()

    def write(self, piece: bytes | memoryview) -> None:
        """The next bytes. Raises OSError."""
        self._digest.update(piece)
        self.write_trusted(piece)

    def write_trusted(self, piece: bytes | memoryview) -> None:
        """The next bytes, which the digest is not taken of. Raises OSError."""
        view = memoryview(piece)
        while len(view):
            view = view[self._file.write(view) :]

    def finish(self, is_trusted: bool = False) -> int:
        """Put the object into its place; returns the number of the file. Raises ValueError when it is not what its id says, OSError."""
        if not is_trusted and self._digest.hexdigest() != self._place.name:
            raise ValueError(f"Object ID {self._place.name[:64]} does not match content hash")
        number = self._temporary.stat().st_ino
        self._temporary.replace(self._place)
        return number


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
