# SPDX-License-Identifier: Apache-2.0
"""A stream of bytes under a passphrase: scrypt (RFC 7914), then AES-256-GCM in chunks.

    magic 16 | log2(N) 1 | salt 32 | chunk | chunk | … | last chunk

Each chunk is 1 MiB of content (the last one what is left, perhaps nothing) and its tag of 16 bytes. Its nonce is its number (11 bytes)
and whether it is the last (1 byte): the STREAM construction (Hoang, Reyhanitabar, Rogaway and Vizár, CRYPTO 2015), so chunks cannot be
changed, swapped, repeated or cut off unseen. The first 49 bytes are authenticated with each chunk. The salt is fresh, so is the key, and
no nonce is used twice under it. What `SealedReader` hands out is authentic; that nothing is missing is known when it has ended.
"""

from __future__ import annotations

import os
from typing import IO, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from common.errors import InputError, StorageError

MAGIC: Final = b"wardround seal 1"
COST: Final = 17
"""log2 of scrypt's N; with r = 8 it takes 128 MiB and some tenths of a second to try one passphrase."""
LEAST_COST, MOST_COST = 10, 20
CHUNK_BYTES: Final = 1 << 20
TAG_BYTES: Final = 16
_SALT_BYTES: Final = 32
_HEADER_BYTES: Final = len(MAGIC) + 1 + _SALT_BYTES
_DAMAGED: Final = "the passphrase is wrong, or the archive is damaged or was changed"


class SealedWriter:
    """Encrypts what is written into `file`. Only after `finish` is it whole."""

    def __init__(self, file: IO[bytes], passphrase: bytes, cost: int = COST) -> None:
        self._file, self._buffer, self._number = file, bytearray(), 0
        self._header = MAGIC + bytes([cost]) + os.urandom(_SALT_BYTES)
        self._cipher = AESGCM(_key(passphrase, self._header))
        file.write(self._header)

    def write(self, content: bytes) -> int:
        """Take content over. A whole chunk waits until it is known whether it is the last."""
        self._buffer += content
        while len(self._buffer) > CHUNK_BYTES:
            self._seal(bytes(self._buffer[:CHUNK_BYTES]), is_last=False)
            del self._buffer[:CHUNK_BYTES]
        return len(content)

    def finish(self) -> None:
        """Write the last chunk."""
        self._seal(bytes(self._buffer), is_last=True)
        self._buffer.clear()

    def _seal(self, chunk: bytes, *, is_last: bool) -> None:
        self._file.write(self._cipher.encrypt(_nonce(self._number, is_last), chunk, self._header))
        self._number += 1


class SealedReader:
    """Decrypts `file`. Raises InputError for what is no such stream, StorageError for a wrong passphrase or damage."""

    def __init__(self, file: IO[bytes], passphrase: bytes, where: str) -> None:
        self._file, self._where, self._number, self._buffer, self._ended = file, where, 0, b"", False
        self._header = file.read(_HEADER_BYTES)
        if len(self._header) != _HEADER_BYTES or not self._header.startswith(MAGIC):
            raise InputError(f"{where}: not a backup of Wardround")
        if not LEAST_COST <= self._header[len(MAGIC)] <= MOST_COST:
            raise StorageError(f"{where}: {_DAMAGED}")
        self._cipher = AESGCM(_key(passphrase, self._header))
        self._ahead = file.read(CHUNK_BYTES + TAG_BYTES)

    def read(self, size_bytes: int) -> bytes:
        """As many bytes, fewer only at the end."""
        parts, wanted = [], size_bytes
        while wanted > 0 and (self._buffer or not self._ended):
            if not self._buffer:
                self._buffer = self._next()
                continue
            parts.append(self._buffer[:wanted])
            self._buffer = self._buffer[len(parts[-1]) :]
            wanted -= len(parts[-1])
        return b"".join(parts)

    def finish(self) -> None:
        """Read to the end, so that a cut is seen."""
        while self.read(CHUNK_BYTES):
            pass

    def _next(self) -> bytes:
        chunk, self._ahead = self._ahead, self._file.read(CHUNK_BYTES + TAG_BYTES)
        is_last = not self._ahead
        try:
            content = self._cipher.decrypt(_nonce(self._number, is_last), chunk, self._header)
        except (InvalidTag, ValueError) as error:
            raise StorageError(f"{self._where}: {_DAMAGED}") from error
        self._number, self._ended = self._number + 1, is_last
        return content


def _key(passphrase: bytes, header: bytes) -> bytes:
    salt, cost = header[len(MAGIC) + 1 :], header[len(MAGIC)]
    return Scrypt(salt=salt, length=32, n=1 << cost, r=8, p=1).derive(passphrase)


def _nonce(number: int, is_last: bool) -> bytes:
    return number.to_bytes(11, "big") + bytes([is_last])
