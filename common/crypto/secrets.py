# SPDX-License-Identifier: Apache-2.0
"""A secret of 32 bytes in a file that only its owner can read, and the keys that are derived from it.

One file is all that an installation has to back up: every key for another purpose is HKDF-SHA256 (RFC 5869) of it.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.crypto.signatures import Signer
from common.errors import StorageError
from common.files import locked, sync_folder

SECRET_BYTES = 32
_HEXADECIMAL = re.compile(rb"[0-9a-f]{64}\n?")


@dataclass(frozen=True)
class Secret:
    """32 secret bytes; never printed."""

    value: bytes = field(repr=False)

    def derive(self, purpose: str) -> bytes:
        """A key of 32 bytes for one purpose; keys for different purposes say nothing about each other."""
        return HKDF(SHA256(), SECRET_BYTES, salt=None, info=f"wardround {purpose}".encode()).derive(self.value)

    @cached_property
    def signer(self) -> Signer:
        """What signs for the owner of this secret."""
        return Signer(self.derive("signature"))

    @classmethod
    def read(cls, path: Path) -> Secret:
        """Read a secret's file. Raises StorageError when it is missing, damaged, or readable by others."""
        try:
            content, mode = path.read_bytes(), path.stat().st_mode
        except OSError as error:
            raise StorageError(f"{path}: cannot read the key ({error.strerror or error}); restore it from its backup") from error
        if mode & 0o077:
            raise StorageError(f"{path}: others may read this key; run chmod 600 on it")
        if not _HEXADECIMAL.fullmatch(content):
            raise StorageError(f"{path}: not a key of {SECRET_BYTES} bytes in hexadecimal; restore it from its backup")
        return cls(bytes.fromhex(content.decode()))

    @classmethod
    def ensure(cls, path: Path) -> Secret:
        """The secret in `path`, made (mode 0600, durable) if there is none."""
        with locked(path.with_name(f".{path.name}.lock")):
            if not path.exists():
                _write_new(path, secrets.token_bytes(SECRET_BYTES))
        return cls.read(path)


def _write_new(path: Path, value: bytes) -> None:
    temporary = path.with_name(f".{path.name}.part")
    try:
        temporary.unlink(missing_ok=True)
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(value.hex().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror or error}; check free space and permissions") from error
