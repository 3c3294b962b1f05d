# SPDX-License-Identifier: Apache-2.0
"""Every file that a working coordinator and a working hospital have is in their backup, or left out on purpose."""

from pathlib import Path

import client.backup
import server.backup
from tests.support.federation import HONEST, Federation

OF_SQLITE = ("-wal", "-shm", "-journal")


def names(folder: Path) -> set[str]:
    """What lies there, without what is hidden and what SQLite puts beside its files."""
    return {path.name for path in folder.iterdir() if not path.name.startswith(".") and not path.name.endswith(OF_SQLITE)}


def test_nothing_of_a_coordinator_is_forgotten(federation: Federation) -> None:
    federation.train(federation.study("backup-lists"))
    known = {*server.backup.WHOLE, *server.backup.LEFT_OUT, server.backup.STATE, server.backup.RUNS}
    assert names(federation.coordinator) - known == set()


def test_nothing_of_a_hospital_is_forgotten(federation: Federation) -> None:
    known = {*client.backup.WHOLE, *client.backup.LINES, *client.backup.LEFT_OUT, client.backup.LEDGER, "studies"}
    assert names(federation.hospitals[HONEST[0]].home) - known == set()
