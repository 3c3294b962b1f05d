# SPDX-License-Identifier: Apache-2.0
"""Known answers where a standard has them, and what must not pass."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.crypto.sealing import BLOCK_BYTES, seal, unseal
from common.crypto.secrets import Secret
from common.crypto.signatures import Signer, is_signed
from common.errors import StorageError


def test_signatures_are_those_of_the_standard() -> None:
    """RFC 8032, section 7.1, test 2."""
    signer = Signer(bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"))
    assert signer.public_key == "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
    signature = signer.sign(b"\x72")
    assert signature.startswith("92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da")
    assert is_signed(signer.public_key, b"\x72", signature)


@pytest.mark.parametrize("change", ["message", "signature", "key", "short", "words"])
def test_a_signature_that_does_not_fit(change: str) -> None:
    signer = Signer(b"1" * 32)
    message, key, signature = b"head", signer.public_key, signer.sign(b"head")
    broken = {
        "message": (key, b"heap", signature),
        "signature": (key, message, signature[:-1] + ("0" if signature[-1] != "0" else "1")),
        "key": (Signer(b"2" * 32).public_key, message, signature),
        "short": (key[:-2], message, signature),
        "words": ("no key", message, "no signature"),
    }
    assert not is_signed(*broken[change])


def test_keys_for_different_purposes_differ_and_stay() -> None:
    secret = Secret(bytes(32))
    assert secret.derive("a") == Secret(bytes(32)).derive("a") != secret.derive("b") != Secret(b"1" * 32).derive("b")
    assert "00" not in repr(secret) and "\\x00" not in repr(secret), "never printed"


def test_a_secret_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "site.key"
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: Secret.ensure(path), range(8)))
    assert made == {Secret.read(path)}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o640)
    with pytest.raises(StorageError, match="chmod 600"):
        Secret.read(path)


@pytest.mark.parametrize("content", [b"", b"ab", b"g" * 64, b"0" * 66])
def test_a_damaged_secret_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StorageError, match="restore it from its backup"):
        Secret.ensure(path)
    with pytest.raises(StorageError, match="cannot read"):
        Secret.read(tmp_path / "none")


@given(st.text())
def test_what_was_sealed_comes_back(text: str) -> None:
    sealed = seal(b"k" * 32, text)
    assert unseal(b"k" * 32, sealed) == text
    assert sealed != seal(b"k" * 32, text), "a fresh nonce"


def test_a_seal_hides_the_length_and_shows_every_change() -> None:
    sealed = seal(b"k" * 32, "a")
    assert len(sealed) == len(seal(b"k" * 32, "ab" * 50)) and len(sealed) * 3 // 4 >= BLOCK_BYTES
    for other, key in ((sealed[:-8] + "AAAAAAA=", b"k" * 32), (sealed, b"x" * 32), ("", b"k" * 32), ("?", b"k" * 32)):
        with pytest.raises(StorageError, match="cannot be opened"):
            unseal(key, other)
