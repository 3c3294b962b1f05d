# SPDX-License-Identifier: Apache-2.0
"""The coordinator's backup: everything that cannot be made again.

In it: settings, authority, certificates, keys, the database (sites, offers, approvals, receipts), the newest ledger head of each site,
and each run with its checkpoints, rounds and events. Not in it: Flower's own database and its objects (nodes are registered again when
`up` starts, a run that goes on is a new Flower run), logs, and what is about running processes. The authority's key is in it if it lies
in the folder; it stays encrypted with its own passphrase.

The database comes first, then the runs: each offer in it has its run's folder.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from importlib import metadata
from pathlib import Path
from typing import Final

from common.archive import Archive, Manifest, back_up, restore
from common.crypto.sealed_stream import COST
from common.errors import StorageError
from server.home import SETTINGS_FILE, ServerHome

WHOLE: Final = (
    SETTINGS_FILE,
    "ca.crt",
    "ca.key",
    "server.crt",
    "server.key",
    "study.key",
    "study.pub",
    "coordinator.key",
    "superexec.secret",
    "ledger-heads.json",
)
STATE: Final = "state.sqlite"
RUNS: Final = "runs"
LEFT_OUT: Final = (
    *("superlink.sqlite", "superlink.sqlite.objects", "flower", "logs", "tokens", "serverapps"),
    *("up.json", "up.lock", "executor.lock"),
)
"""What a coordinator's folder has besides, and what a backup needs not have."""
ROOM_FOR_RECEIPTS: Final = 1_000_000
_OF_SQLITE: Final = ("-wal", "-shm", "-journal")


def back_up_server(home: ServerHome, path: Path, passphrase: bytes, *, cost: int = COST) -> int:
    """Write the coordinator's backup to a new file, while everything runs; its size in bytes. Raises InputError, StorageError."""
    manifest = Manifest(kind="server", name=home.settings.url, version=metadata.version("wardround"), created=time.time())

    def fill(archive: Archive) -> None:
        for name in WHOLE:
            archive.add_file(name, home.folder / name)
        archive.add_database(STATE, home.state)
        for folder in sorted(path for path in (home.folder / RUNS).glob("*") if path.is_dir()):
            _add_run(archive, home.folder, folder)

    return back_up(path, passphrase, manifest, fill, cost)


def _add_run(archive: Archive, home: Path, folder: Path) -> None:
    """Rounds and events before the checkpoints: a run that is continued knows its last round from the newest checkpoint."""
    files = sorted(_files(folder), key=lambda path: (path.suffix not in (".sqlite", ".jsonl"), path))
    for path in files:
        name = str(path.relative_to(home))
        if path.suffix == ".sqlite":
            archive.add_database(name, path)
        elif path.suffix == ".jsonl":
            archive.add_lines(name, path)
        else:
            archive.add_file(name, path)


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and not path.name.startswith(".") and not path.name.endswith(_OF_SQLITE):
            yield path


def restore_server(path: Path, passphrase: bytes, folder: Path) -> Manifest:
    """Unpack a coordinator's backup into a new folder. Raises InputError, StorageError; then nothing is left."""

    def complete(unpacked: Path, _manifest: Manifest) -> None:
        home = ServerHome(unpacked)
        _ = home.settings  # they can be read
        _number_receipts_higher(home.state)

    return restore(path, passphrase, "server", folder, complete)


def _number_receipts_higher(path: Path) -> None:
    """Sites ask for receipts above the highest number that they have seen; numbers given after the backup are never given twice."""
    try:
        with closing(sqlite3.connect(path)) as database, database:
            known = database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'egress_receipt'").fetchone()
            database.execute("DELETE FROM sqlite_sequence WHERE name = 'egress_receipt'")
            number = ROOM_FOR_RECEIPTS + (0 if known is None else int(known[0]))
            database.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('egress_receipt', ?)", (number,))
    except sqlite3.Error as error:
        raise StorageError(f"{path.name}: cannot be used ({error}); take an earlier backup") from error
