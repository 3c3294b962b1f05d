# SPDX-License-Identifier: Apache-2.0
"""Which nodes are online, read from the SuperLink's own database: no call, and nothing of Flower is loaded.

The table `node` of Flower 1.41: `node_id` as SQLite's signed number, `online_until` in seconds since the epoch, moved on by heartbeats.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

TIMEOUT_SECONDS = 2.0


def online_nodes(database: Path, now: float) -> set[int]:
    """Node ids (unsigned) that are online; none where there is no database yet. Raises sqlite3.Error."""
    if not database.exists():
        return set()
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True, timeout=TIMEOUT_SECONDS)) as connection:
        rows = connection.execute("SELECT node_id FROM node WHERE online_until > ?", (now,)).fetchall()
    return {int(node_id) % (1 << 64) for (node_id,) in rows if node_id is not None}
