# SPDX-License-Identifier: Apache-2.0
"""egress.jsonl: one line for each message with content that was about to leave, chained and durable before its first byte does.

A line is a flat JSON object in canonical form: its facts, `hash` (SHA-256 of the facts, `previous` among them) and `mac` (HMAC-SHA256 of
the hash with a key of the site). So an edited or removed line is found, and a line that somebody without the key wrote. What a chain
cannot show by itself: lines cut from its end, and a chain that was rewritten by somebody with the key (`client.egress_audit`).

What a crash leaves of a line is cut off before the next one, which says how many bytes that were (`torn_bytes`): its bytes never left,
because they leave only after the whole line is synced. A line that is whole but for its newline is kept.
"""

from __future__ import annotations

import errno
import hashlib
import hmac
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.crypto.secrets import Secret
from common.errors import StorageError
from common.federation import DIGEST, NO_MESSAGE, NO_RUN, RUN_ID
from common.files import locked, sync_folder, write_durably

BEFORE_THE_FIRST: Final = "0" * 64
MAC_PURPOSE: Final = "egress lines"
ROOM_BYTES: Final = 1 << 16
_BLOCK_BYTES: Final = 1 << 16
_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_REMEDY: Final = "keep the damaged file under another name; the next line then starts a new chain, see docs/egress.md"


Kind = Literal["update", "evaluated", "surveyed", "refusal", "note"]


class EgressField(NamedTuple):
    """One value that leaves. `shape` of a tensor, () for anything else; `size_bytes` as Flower packs it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


class EgressLine(BaseModel):
    """One line without its hash and MAC. `number` counts from 1, `time` is seconds since the epoch.

    `epsilon`: upper bound of what the patients' account has spent on the line that paid, after this; None where nothing was spent.
    `ledger_row`, `ledger_hash`: the ledger's head that rode along. `kind` note is no message: hospital IT explains (`note`) why the
    lines of these statements are not here (`explained`). `size_bytes`: all fields, without the two heads. `exclusions`: how many patients
    the hospital's exclusion list has, where its policy has them counted.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    number: int = Field(ge=1)
    time: float
    kind: Kind
    study_id: str = Field(NO_MESSAGE, pattern=DIGEST)
    run_id: str = Field(NO_RUN, pattern=RUN_ID)
    round: int = Field(0, ge=0)
    code: str = ""
    fields: tuple[EgressField, ...] = ()
    size_bytes: int = Field(0, ge=0)
    incoming_sha256: str = Field(NO_MESSAGE, pattern=DIGEST)
    payload_sha256: str = Field(NO_MESSAGE, pattern=DIGEST)
    statement_sha256: str = Field(NO_MESSAGE, pattern=DIGEST)
    epsilon: float | Literal["not protected", "unknown"] | None = None
    ledger_row: int | None = None
    ledger_hash: str | None = None
    note: str = ""
    explained: tuple[str, ...] = ()
    torn_bytes: int = Field(0, ge=0)
    exclusions: int | None = Field(None, ge=0)
    previous: str = Field(pattern=DIGEST)

    @property
    def hash(self) -> str:
        """SHA-256 of the line's facts."""
        return hashlib.sha256(_canonical(self.facts()).encode()).hexdigest()

    def facts(self) -> dict[str, object]:
        """What is stored and hashed; `exclusions` only where policy has it counted, so lines from before it was there stay as they are."""
        facts: dict[str, object] = self.model_dump(mode="json")
        if self.exclusions is None:
            del facts["exclusions"]
        return facts


@dataclass(frozen=True)
class ChainEnd:
    """Where a chain ends: number and hash of its last line; `torn_bytes` of an unfinished one were cut off behind it."""

    number: int = 0
    hash: str = BEFORE_THE_FIRST
    torn_bytes: int = 0


class EgressChain:
    """The chain in the file `path`, made with its first line (mode 0600). Safe in several processes at once."""

    def __init__(self, path: Path, secret: Secret) -> None:
        self.path = path
        self._mac_key = secret.derive(MAC_PURPOSE)

    def append(self, make: Callable[[ChainEnd], EgressLine], *, use_room: bool = False) -> EgressLine:
        """Add the line that `make` gives for the end of the chain; durable when this returns, and not there at all when it raises.

        `use_room`: on a full disk give up the room that is kept for refusals. Raises StorageError.
        """
        with locked(self.path.with_name(f".{self.path.name}.lock")), self._errors():
            try:
                line = self._append(make)
            except OSError as error:
                if error.errno not in _FULL or not use_room or not self._give_up_room():
                    raise
                line = self._append(make)
            self._keep_room()
            return line

    def lines(self) -> Iterator[EgressLine]:
        """All lines, each checked against the one before; an unfinished last one is left out. Raises StorageError naming the line."""
        if not self.path.exists():
            return
        end = ChainEnd()
        with self._errors(), self.path.open("rb") as file:
            for text in file:
                if not text.endswith(b"\n") and not self._is_next(text, end):
                    return
                line = self._read(text.rstrip(b"\n"), end.number + 1)
                if (line.number, line.previous) != (end.number + 1, end.hash):
                    raise StorageError(
                        f"{self.path}: line {end.number + 1} does not follow from the one before (it says number {line.number}): lines "
                        f"were removed, added or edited; {_REMEDY}"
                    )
                end = ChainEnd(line.number, line.hash)
                yield line

    def checked(self, text: bytes) -> EgressLine:
        """One whole line (without its newline), checked by itself: its hash and its MAC. Raises StorageError."""
        return self._read(text, None)

    def _append(self, make: Callable[[ChainEnd], EgressLine]) -> EgressLine:
        handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        with os.fdopen(handle, "r+b", buffering=0) as file:
            end = self._end(file)
            line = make(end)
            write_durably(file, self._text(line))
        if line.number == 1:
            sync_folder(self.path.parent)
        return line

    def _end(self, file: IO[bytes]) -> ChainEnd:
        """The end of the chain; the file is positioned there, and what a crash left behind it is cut off. Raises StorageError."""
        content, start = _tail(file)
        whole = content.rfind(b"\n") + 1
        last, torn = content[:whole].splitlines()[-1:], content[whole:]
        end = ChainEnd()
        if last:
            line = self._read(last[0], None)
            end = ChainEnd(line.number, line.hash)
        if torn and self._is_next(torn, end):
            file.seek(0, os.SEEK_END)
            file.write(b"\n")
            return ChainEnd(end.number + 1, self._read(torn, None).hash)
        file.truncate(start + whole)
        file.seek(0, os.SEEK_END)
        return ChainEnd(end.number, end.hash, len(torn))

    def _is_next(self, text: bytes, end: ChainEnd) -> bool:
        """Whether an unfinished line is the whole next one, without its newline."""
        with suppress(StorageError):
            line = self._read(text, None)
            return (line.number, line.previous) == (end.number + 1, end.hash)
        return False

    def _read(self, text: bytes, number: int | None) -> EgressLine:
        """Check one line by itself. Raises StorageError; `number` is its place for the message, None for the last line."""
        where = f"{self.path}: {'the last line' if number is None else f'line {number}'}"
        try:
            plain = json.loads(text)
            digest, mac = plain.pop("hash"), plain.pop("mac")
            line = EgressLine.model_validate(plain)
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError, RecursionError) as error:
            raise StorageError(f"{where} cannot be read ({type(error).__name__}); {_REMEDY}") from error
        if line.hash != digest or self._text(line, mac) != text + b"\n":
            raise StorageError(f"{where} was edited: its hash does not fit; {_REMEDY}")
        if not hmac.compare_digest(str(mac), self._mac(digest)):
            raise StorageError(f"{where} was not written with this site's key; {_REMEDY}")
        return line

    def _text(self, line: EgressLine, mac: str | None = None) -> bytes:
        """The line as it is stored, with its newline."""
        digest = line.hash
        facts = {**line.facts(), "hash": digest, "mac": self._mac(digest) if mac is None else mac}
        return _canonical(facts).encode() + b"\n"

    def _mac(self, digest: str) -> str:
        return hmac.new(self._mac_key, digest.encode(), hashlib.sha256).hexdigest()

    @property
    def _room(self) -> Path:
        return self.path.with_name(f".{self.path.name}.room")

    def _keep_room(self) -> None:
        """Make sure that a refusal can be written on a full disk; what cannot be done now is tried again with the next line."""
        with suppress(OSError):
            if not self._room.exists():
                self._room.write_bytes(os.urandom(ROOM_BYTES))  # not zeros: some file systems store those as nothing

    def _give_up_room(self) -> bool:
        with suppress(OSError):
            self._room.unlink()
            return True
        return False

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StorageError(f"cannot use {self.path}: {error.strerror or error}; check free space and permissions") from error


def _tail(file: IO[bytes]) -> tuple[bytes, int]:
    """The end of a file, with its last whole line in it, and where that begins."""
    size = file.seek(0, os.SEEK_END)
    length = _BLOCK_BYTES
    while True:
        start = max(0, size - length)
        file.seek(start)
        content = _read_all(file)
        if start == 0 or content.count(b"\n") > 1:
            return content, start
        length *= 4


def _read_all(file: IO[bytes]) -> bytes:
    return b"".join(iter(lambda: file.read(_BLOCK_BYTES), b""))


def _canonical(plain: dict[str, object]) -> str:
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), allow_nan=False)
