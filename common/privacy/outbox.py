# SPDX-License-Identifier: Apache-2.0
"""Finished replies, kept until they are surely not asked for again.

A reply is stored before its charge says `releasing`; asked again, exactly these bytes are sent. A reply that cannot be read back
whole counts as missing damage, never as something to compute anew.
"""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

from common.aside import Aside
from common.errors import StorageError
from common.files import atomic_file, sha256_of, sync_folder
from common.privacy.charge_book import ChargeKey


class Outbox:
    """One file for each reply in `folder`: the SHA-256 of the reply (32 bytes), then the reply."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def store(self, key: ChargeKey, *reply: bytes | memoryview) -> str:
        """Keep a reply, in one part or several, durably, in place of an earlier one that was never released.

        Returns its SHA-256 in hexadecimal.
        """
        if not self._folder.exists():
            self._folder.mkdir(parents=True)
            sync_folder(self._folder.parent)
        digest = Aside(partial(sha256_of, reply))
        with atomic_file(self._path(key)) as file:
            file.write(bytes(hashlib.sha256().digest_size))
            file.writelines(reply)
            file.seek(0)
            file.write(bytes.fromhex(digest.result()))
        return digest.result()

    def load(self, key: ChargeKey) -> bytes | None:
        """The stored reply, or None if there is none. Raises StorageError when the file is damaged."""
        path = self._path(key)
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}; check permissions") from error
        if hashlib.sha256(content[32:]).digest() != content[:32]:
            raise StorageError(f"{path}: the stored reply is damaged; its round is lost and stays charged")
        return content[32:]

    def discard_before(self, study_id: str, run_id: str, round_number: int) -> None:
        """Delete the replies of earlier rounds of this run: a later round shows that they arrived."""
        prefix = _run_name(study_id, run_id)
        for path in self._folder.glob(f"{prefix}-*.reply"):
            if int(path.name[len(prefix) + 1 :].split("-")[0]) < round_number:
                path.unlink(missing_ok=True)

    def _path(self, key: ChargeKey) -> Path:
        name = hashlib.sha256(json.dumps([*key.slot, key.message_sha256]).encode()).hexdigest()[:32]  # accounts may be merged later
        return self._folder / f"{_run_name(key.study_id, key.run_id)}-{key.round:09d}-{name}.reply"


def _run_name(study_id: str, run_id: str) -> str:
    """Whatever the ids contain, a name that is safe for a file."""
    return hashlib.sha256(json.dumps([study_id, run_id]).encode()).hexdigest()[:32]
