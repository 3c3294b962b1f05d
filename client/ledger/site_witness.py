# SPDX-License-Identifier: Apache-2.0
"""What shows at a site that its ledger is an old copy: the log of what left, and the mark of a restore.

EgressHeads   the ledger's head in the newest egress line that has one; only lines that are new since the last call are read
Restored      `restored.json`: this site came out of a backup; whatever happened after that backup is not known here
SiteWitness   both, for the site in one folder
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.egress_chain import EgressChain
from client.ledger.rows import ReceiptId
from client.ledger.witnesses import Sighting
from common.crypto.private_files import replace_private
from common.crypto.secrets import Secret
from common.errors import StorageError
from common.federation import DIGEST
from common.files import sync_folder

RESTORED_FILE: Final = "restored.json"
EGRESS_FILE: Final = "egress.jsonl"
_BLOCK_BYTES: Final = 1 << 16
_NO_HEAD: Final = b'"ledger_row":null'


class EgressHeads:
    """The newest ledger head in the log of what left."""

    def __init__(self, chain: EgressChain) -> None:
        self._chain = chain
        self._newest: ReceiptId | None = None
        self._file: tuple[int, int] | None = None
        self._end = 0  # all whole lines up to this byte were read

    def newest(self) -> ReceiptId | None:
        """Row number and hash in the newest line that has them; None without such a line. Only that line is checked, by itself.

        Raises StorageError when the log cannot be read or the line was not written by this site.
        """
        try:
            with self._chain.path.open("rb") as file:
                self._read(file)
        except FileNotFoundError:
            self._file, self._newest, self._end = None, None, 0
        except OSError as error:
            raise StorageError(f"cannot read {self._chain.path}: {error.strerror or error}; check permissions") from error
        return self._newest

    def _read(self, file: IO[bytes]) -> None:
        """Take over what is new. A file that was replaced or cut is read anew."""
        facts = _identity(file)
        size_bytes = file.seek(0, 2)
        if facts != self._file or size_bytes < self._end:
            self._file, self._newest, self._end = facts, None, 0
        end = self._end
        for line, line_end in _backwards(file, self._end, size_bytes):
            end = max(end, line_end)
            head = None if _NO_HEAD in line else self._head(line)
            if head is not None:
                self._newest = head
                break
        self._end = end

    def _head(self, text: bytes) -> ReceiptId | None:
        line = self._chain.checked(text)
        return None if line.ledger_row is None or line.ledger_hash is None else (line.ledger_row, line.ledger_hash)


def _identity(file: IO[bytes]) -> tuple[int, int]:
    facts = os.fstat(file.fileno())
    return (facts.st_dev, facts.st_ino)


def _backwards(file: IO[bytes], start: int, end: int) -> Iterator[tuple[bytes, int]]:
    """Whole lines between two bytes, the last one first, each with the byte behind it; read from the end in growing blocks."""
    length, behind = _BLOCK_BYTES, end
    while behind > start:
        begin = max(start, behind - length)
        file.seek(begin)
        content = file.read(behind - begin)
        cut = 0 if begin == start else content.find(b"\n") + 1
        last = content.rfind(b"\n") + 1
        if last <= cut and begin > start:  # one line is longer than the block
            length *= 4
            continue
        at = begin + last
        for line in reversed(content[cut:last].splitlines(keepends=True)):
            yield line.rstrip(b"\n"), at
            at -= len(line)
        behind, length = begin + cut, length * 4
        if begin == start:
            return


class Restored(BaseModel):
    """`restored.json`, written by a restore before the folder has its name. `id` is new each time.

    `row` is the ledger's last one in the backup. Times are seconds since the epoch. Every account stays closed until a recovery has
    answered the id in the ledger.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(pattern=DIGEST)
    row: int = Field(ge=0)
    backup_made: float
    restored: float

    @classmethod
    def new(cls, row: int, backup_made: float, now: float) -> Restored:
        """The mark of a restore that happens now."""
        return cls(id=secrets.token_hex(32), row=row, backup_made=backup_made, restored=now)

    @classmethod
    def read(cls, folder: Path) -> Restored | None:
        """The mark of the site in `folder`, if it has one. Raises StorageError for one that cannot be read: it closes the ledger too."""
        path = folder / RESTORED_FILE
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise StorageError(f"{path}: cannot be read ({type(error).__name__}); restore the backup again, into a new folder") from error

    def write(self, folder: Path) -> None:
        """Put it there, durably."""
        replace_private(folder / RESTORED_FILE, json.dumps(self.model_dump(), indent=1).encode())

    @property
    def sighting(self) -> Sighting:
        """What the ledger must have answered."""
        return Sighting((self.row, self.id), "this site was restored from a backup, and what happened after that backup is not known here")


def remove_mark(folder: Path) -> None:
    """Take the mark away, once the ledger itself says that it was answered. Raises StorageError."""
    try:
        (folder / RESTORED_FILE).unlink(missing_ok=True)
        sync_folder(folder)
    except OSError as error:
        raise StorageError(f"cannot remove {folder / RESTORED_FILE}: {error.strerror or error}; check permissions") from error


class SiteWitness:
    """What the site's own folder shows about its ledger."""

    def __init__(self, folder: Path, secret: Secret) -> None:
        self._folder = folder
        self._egress = EgressHeads(EgressChain(folder / EGRESS_FILE, secret))

    def sightings(self) -> list[Sighting]:
        """See `Witness`."""
        mark, head = Restored.read(self._folder), self._egress.newest()
        found = [] if mark is None else [mark.sighting]
        if head is not None:
            found.append(Sighting(head, f"the log of what left shows row {head[0]} with hash {head[1][:12]}…, this ledger lacks it"))
        return found
