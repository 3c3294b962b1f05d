# SPDX-License-Identifier: Apache-2.0
"""Bytes under a passphrase: what comes out is what went in, whole, or an error."""

import io
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.crypto.sealed_stream import CHUNK_BYTES, LEAST_COST, MAGIC, TAG_BYTES, SealedReader, SealedWriter
from common.errors import InputError, StorageError

PASSPHRASE = b"correct horse battery"
HEADER_BYTES = len(MAGIC) + 1 + 32


def sealed(*parts: bytes, passphrase: bytes = PASSPHRASE) -> bytes:
    file = io.BytesIO()
    writer = SealedWriter(file, passphrase, LEAST_COST)
    for part in parts:
        writer.write(part)
    writer.finish()
    return file.getvalue()


def opened(content: bytes, passphrase: bytes = PASSPHRASE, step: int = 1 << 22) -> bytes:
    reader = SealedReader(io.BytesIO(content), passphrase, "a file")
    parts = list(iter(lambda: reader.read(step), b""))
    reader.finish()
    return b"".join(parts)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES, 3 * CHUNK_BYTES + 17])
def test_any_length(size: int) -> None:
    content = os.urandom(size)
    cut = size // 3
    stored = sealed(content[:cut], content[cut:])
    chunks = max(1, -(-size // CHUNK_BYTES))
    assert len(stored) == HEADER_BYTES + size + chunks * TAG_BYTES
    for step in (1 << 22, 100_003):
        assert opened(stored, step=step) == content


def test_the_same_twice_looks_different() -> None:
    one, two = sealed(b"x" * 100), sealed(b"x" * 100)
    assert one[HEADER_BYTES:] != two[HEADER_BYTES:] and b"x" * 20 not in one


STORED = sealed(b"a" * CHUNK_BYTES, b"b" * CHUNK_BYTES, b"c" * 10)
WHOLE = CHUNK_BYTES + TAG_BYTES


@settings(max_examples=40, deadline=None)
@given(st.integers(0, len(STORED) - 1), st.integers(0, 7))
def test_every_bit_counts(place: int, bit: int) -> None:
    changed = bytearray(STORED)
    changed[place] ^= 1 << bit
    with pytest.raises((StorageError, InputError)):
        opened(bytes(changed))


@pytest.mark.parametrize(
    "changed",
    [
        STORED[:-1],
        STORED[: HEADER_BYTES + 2 * WHOLE],
        STORED[: HEADER_BYTES + WHOLE],
        STORED[:HEADER_BYTES],
        STORED + b"x",
        STORED + STORED[HEADER_BYTES : HEADER_BYTES + WHOLE],
        STORED[:HEADER_BYTES] + STORED[HEADER_BYTES + WHOLE : HEADER_BYTES + 2 * WHOLE] + STORED[HEADER_BYTES + WHOLE :],
        STORED[: HEADER_BYTES + WHOLE] + STORED[HEADER_BYTES : HEADER_BYTES + WHOLE] + STORED[HEADER_BYTES + 2 * WHOLE :],
        STORED[:HEADER_BYTES] + STORED[HEADER_BYTES + 2 * WHOLE :],
    ],
    ids=[
        "cut",
        "last chunk gone",
        "one chunk left",
        "no chunk",
        "one byte more",
        "a chunk more",
        "first lost",
        "repeated",
        "only the last",
    ],
)
def test_cut_repeated_or_swapped_is_damage(changed: bytes) -> None:
    with pytest.raises(StorageError, match="a file: the passphrase is wrong, or the archive is damaged"):
        opened(changed)


def test_the_wrong_passphrase_opens_nothing() -> None:
    with pytest.raises(StorageError, match="the passphrase is wrong"):
        opened(STORED, b"correct horse batterie")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04" + bytes(100), MAGIC])
def test_what_is_no_such_stream(content: bytes) -> None:
    with pytest.raises(InputError, match="not a backup of Wardround"):
        opened(content)


def test_a_cost_that_would_take_all_memory_is_refused() -> None:
    changed = bytearray(STORED)
    changed[len(MAGIC)] = 40
    with pytest.raises(StorageError, match="damaged"):
        opened(bytes(changed))
