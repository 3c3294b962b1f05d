# SPDX-License-Identifier: Apache-2.0
"""A charge book in one append-only file of JSON lines, for simulation.

A row holds its number, the SHA-256 of the row before, and the charge after the row. It is written by one `write` and fsynced before
the caller hears of it; a lock file orders processes. Bytes after the last line end are a write that a crash cut short: nobody was
told of it, so it does not count, and the next row takes its place. Anything else that does not fit is damage, and nothing trains.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import InputError, RefusedError, StorageError
from common.files import locked, sync_folder
from common.privacy.charge_book import (
    CHARGE_STATE,
    Charge,
    ChargeBook,
    ChargeFold,
    ChargeKey,
    Standing,
    State,
    charge_from_plain,
    charge_to_plain,
    check_digest,
    check_event,
)

BEFORE_THE_FIRST = "0" * 64


class ChargeFile(ChargeBook):
    """The charges in the file `path`, made at the first reservation. Only rows that are new since the last call are read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fold = ChargeFold()
        self._size_bytes = 0  # up to here the file is folded
        self._rows = 0
        self._head = BEFORE_THE_FIRST
        self._fresh: set[ChargeKey] = set()  # reserved by this object and not asked for again: only these can be settled

    def reserve(self, key: ChargeKey, event_json: str, steps: int) -> Standing:
        """See `ChargeBook`."""
        check_event(event_json, steps)
        with self._open() as file:
            standing = self._fold.standing(key, event_json, steps)
            if standing is Standing.NEW:
                self._append(file, Charge(key, State.RESERVED, event_json, steps))
                self._fresh.add(key)
            else:
                self._fresh.discard(key)
                os.fsync(file)  # the row may have been written by a process that died before its own fsync
        return standing

    def releasing(self, key: ChargeKey, reply_sha256: str) -> None:
        """See `ChargeBook`."""
        check_digest(reply_sha256)
        self._move(key, State.RELEASING, reply_sha256)

    def sent(self, key: ChargeKey) -> None:
        """See `ChargeBook`."""
        self._move(key, State.SENT)

    def settle_to_zero(self, key: ChargeKey) -> None:
        """See `ChargeBook`."""
        if key not in self._fresh:
            raise RefusedError(CHARGE_STATE, f"round {key.round} of run {key.run_id} may have been trained before, so its charge stays")
        self._move(key, State.SETTLED)

    def charges(self) -> list[Charge]:
        """See `ChargeBook`."""
        with self._open():
            return self._fold.charges

    def _move(self, key: ChargeKey, state: State, reply_sha256: str | None = None) -> None:
        with self._open() as file:
            charge = self._fold.moved(key, state, reply_sha256)
            if charge is not None:
                self._append(file, charge)

    @contextmanager
    def _open(self) -> Iterator[int]:
        """The locked file as a descriptor, with every row folded."""
        try:
            with locked(self._path.with_name(self._path.name + ".lock")):
                file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)
                try:
                    self._read_new_rows(file)
                    yield file
                finally:
                    os.close(file)
        except OSError as error:
            raise StorageError(f"cannot use {self._path}: {error.strerror or error}; check free space and permissions") from error

    def _read_new_rows(self, file: int) -> None:
        size = os.fstat(file).st_size
        if size < self._size_bytes:
            raise StorageError(f"{self._path}: became shorter while in use, so charges are missing; restore the file from its backup")
        content = os.pread(file, size - self._size_bytes, self._size_bytes)
        for line in content[: content.rfind(b"\n") + 1].splitlines(keepends=True):
            self._take(line)

    def _take(self, line: bytes) -> None:
        """Fold the next row. Raises StorageError, with its number, when it is not the row that can come next."""
        remedy = "the file is damaged or was changed; restore it from its backup"
        try:
            plain = json.loads(line)
            if plain["row"] != self._rows or plain["previous"] != self._head or _line(plain) != line:
                raise StorageError(f"{self._path}: row {self._rows} does not follow from the row before; {remedy}")
            charge = charge_from_plain(plain["charge"])
            check_event(charge.event_json, charge.steps)
            self._fold.apply(charge)
        except (ValueError, KeyError, TypeError, AttributeError, InputError, RefusedError) as error:
            raise StorageError(f"{self._path}: row {self._rows} cannot be read ({type(error).__name__}); {remedy}") from error
        self._advance(line)

    def _append(self, file: int, charge: Charge) -> None:
        """Write one row for good, in place of a write that was cut short."""
        if os.fstat(file).st_size > self._size_bytes:
            os.ftruncate(file, self._size_bytes)
        if self._rows == 0:
            sync_folder(self._path.parent)  # the name of a new file has to last as well
        line = _line({"row": self._rows, "previous": self._head, "charge": charge_to_plain(charge)})
        if os.write(file, line) != len(line):
            raise StorageError(f"cannot write {self._path}: the disk took only part of a row; free some space and try again")
        self._sync_row(file)
        self._fold.apply(charge)
        self._advance(line)

    def _sync_row(self, file: int) -> None:
        """Make the row durable, or take it back: a row that may be lost is never counted as written."""
        try:
            os.fsync(file)
        except OSError:
            os.ftruncate(file, self._size_bytes)
            raise

    def _advance(self, line: bytes) -> None:
        self._rows += 1
        self._size_bytes += len(line)
        self._head = hashlib.sha256(line).hexdigest()


def _line(plain: dict[str, object]) -> bytes:
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode() + b"\n"
