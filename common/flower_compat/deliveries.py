# SPDX-License-Identifier: Apache-2.0
"""Messages that the SuperLink counts as delivered and whose answer may have been lost on the way: found, and made ready to be given again.

The tables `message_ins`, `message_res` and `objects` of Flower 1.41: a pull writes the time into `delivered_at`, and from then on nobody
gets the message. Its objects stay until the site confirms that it has them, and the reply, if there is one, names it. Only a message
without a reply, not expired, whose objects are still there is ever found or changed: of any other, Flower would drop message and reply
at the next pull. Nothing of Flower is loaded.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Collection
from contextlib import closing
from pathlib import Path
from typing import Final

TIMEOUT_SECONDS: Final = 2.0
_UNSIGNED_64: Final = 1 << 64
_OPEN: Final = """
    delivered_at <> '' AND created_at + ttl > ?
    AND NOT EXISTS (SELECT 1 FROM message_res WHERE message_res.reply_to_message_id = message_ins.message_id)
    AND EXISTS (SELECT 1 FROM objects WHERE objects.object_id = message_ins.message_id)
"""


def delivered_unanswered(database: Path, now: float) -> list[tuple[str, int, int]]:
    """Message id, Flower's run id and node id (both unsigned), the oldest message first; none where there is no database yet.

    `now` in seconds since the epoch. Raises sqlite3.Error.
    """
    if not database.exists():
        return []
    query = f"SELECT message_id, run_id, dst_node_id FROM message_ins WHERE {_OPEN} ORDER BY created_at"
    with closing(_opened(database, "ro")) as connection:
        rows = connection.execute(query, (now,)).fetchall()
    return [(str(message_id), int(run) % _UNSIGNED_64, int(node) % _UNSIGNED_64) for message_id, run, node in rows]


def undeliver(database: Path, message_ids: Collection[str]) -> int:
    """Let the SuperLink give these messages out once more, to the same nodes; how many were changed. Raises sqlite3.Error."""
    now = time.time()
    statement = f"UPDATE message_ins SET delivered_at = '' WHERE {_OPEN} AND message_id = ?"
    with closing(_opened(database, "rw")) as connection, connection:
        return connection.executemany(statement, [(now, message_id) for message_id in message_ids]).rowcount


def _opened(database: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.absolute().as_uri()}?mode={mode}", uri=True, timeout=TIMEOUT_SECONDS)
