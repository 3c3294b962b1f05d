# SPDX-License-Identifier: Apache-2.0
"""Passphrases that people choose, long enough to protect a key or an archive; from a file that only its owner can read, or asked for."""

from __future__ import annotations

from pathlib import Path

from common.crypto.private_files import read_private
from common.errors import InputError

MIN_PASSPHRASE_BYTES = 12


def passphrase_in(path: Path) -> bytes:
    """The first line of a file that only its owner can read. Raises InputError when it is too short, StorageError."""
    lines = read_private(path, "passphrase").splitlines()
    return checked_passphrase(lines[0] if lines else b"", str(path))


def checked_passphrase(passphrase: bytes, where: str = "passphrase") -> bytes:
    """Raises InputError for one that is too short to protect anything."""
    if len(passphrase) < MIN_PASSPHRASE_BYTES:
        raise InputError(f"{where}: a passphrase has at least {MIN_PASSPHRASE_BYTES} characters, this one has {len(passphrase)}")
    return passphrase


def ask_passphrase(file: Path | None, what: str, *, is_new: bool) -> bytes:
    """From the file, else asked for on the terminal, twice when it is chosen now. Raises InputError, StorageError."""
    if file is not None:
        return passphrase_in(file)
    import typer

    text = f"Choose a passphrase for {what}" if is_new else f"Passphrase of {what}"
    return checked_passphrase(typer.prompt(text, hide_input=True, confirmation_prompt=is_new, err=True).encode())
