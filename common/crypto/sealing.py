# SPDX-License-Identifier: Apache-2.0
"""Text that others may keep but only the owner of the key can read: AES-256-GCM, padded so that the length says little."""

from __future__ import annotations

import base64
import secrets
import zlib

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from common.errors import StorageError

BLOCK_BYTES = 4096
MAX_TEXT_BYTES = 1 << 26
_NONCE_BYTES = 12


def seal(key: bytes, text: str) -> str:
    """`text` compressed, padded to whole blocks and encrypted under `key` (32 bytes), in base64."""
    packed = zlib.compress(text.encode(), 9)
    padding = -(len(packed) + 4) % BLOCK_BYTES
    nonce = secrets.token_bytes(_NONCE_BYTES)
    plain = len(packed).to_bytes(4, "big") + packed + bytes(padding)
    return base64.b64encode(nonce + AESGCM(key).encrypt(nonce, plain, None)).decode()


def unseal(key: bytes, sealed: str) -> str:
    """What `seal` was given. Raises StorageError when it was not sealed with this key or was changed."""
    try:
        content = base64.b64decode(sealed, validate=True)
        plain = AESGCM(key).decrypt(content[:_NONCE_BYTES], content[_NONCE_BYTES:], None)
        size = int.from_bytes(plain[:4], "big")
        inflate = zlib.decompressobj()
        return inflate.decompress(plain[4 : 4 + size], MAX_TEXT_BYTES).decode()
    except (ValueError, InvalidTag, zlib.error) as error:
        raise StorageError(f"sealed text cannot be opened ({type(error).__name__}): another key, or it was changed") from error
