# SPDX-License-Identifier: Apache-2.0
"""What belongs to which site: the messages that were delivered to it with their objects, and the sessions that its replies opened.

Flower gives any object of a running run to whoever asks by its id, and takes objects into any open session. Here a site gets only
objects of messages that passed through this gateway to it, and only until it has confirmed them; the message itself stays known, so that
the reply can be told from others. All of it is in the database before it counts, so that a restarted gateway knows it. One gateway at a
time. How much came in reply to a message (`Taken`) is counted over all attempts and all sessions, in memory only: after a restart of the
gateway the sessions of before it share one count for their run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from server.state import State

KEPT_MESSAGES: Final = 32
KEPT_SESSIONS: Final = 64
_WHOLE = ""
"""The object id of the row that stands for the message itself; it stays when the objects were confirmed."""

_Run = tuple[str, int]
_OLD: Final = ""
"""In the place of the message, for sessions of before a restart."""


@dataclass
class Taken:
    """What the SuperLink took in reply to one message: how often a reply was announced, and what objects came for it."""

    replies: int = 0
    objects: int = 0
    size_bytes: int = 0


class Addressed:
    """The tables `addressed` and `push_session`, in memory too. For one event loop; each change is one transaction in a thread.

    Of each site and run the newest 32 messages are known, of each site the newest 64 sessions: more are never open at once.
    """

    def __init__(self, state: State) -> None:
        self._state = state
        self._messages: dict[_Run, dict[str, frozenset[str]]] = {}
        self._sessions: dict[str, dict[str, tuple[int, str]]] = {}
        self._taken: dict[_Run, dict[str, Taken]] = {}
        self._load()

    def has_object(self, site: str, flower_run_id: int, object_id: str) -> bool:
        """Whether the object is part of a message to the site that it has not confirmed."""
        return any(object_id in objects for objects in self._of(site, flower_run_id).values())

    def has_message(self, site: str, flower_run_id: int, message_id: str) -> bool:
        """Whether the message was delivered to the site."""
        return message_id in self._of(site, flower_run_id)

    def is_done(self, site: str, flower_run_id: int, message_id: str) -> bool:
        """Whether the site has confirmed a message that was delivered to it, or answered it since the gateway began."""
        return not self._of(site, flower_run_id).get(message_id) or self.taken(site, flower_run_id, message_id).replies > 0

    def has_session(self, site: str, flower_run_id: int, session_id: str) -> bool:
        """Whether a reply of the site in this run opened the session."""
        return bool(session_id) and self._sessions.get(site, {}).get(session_id, (None, _OLD))[0] == flower_run_id

    def taken(self, site: str, flower_run_id: int, message_id: str) -> Taken:
        """What came in reply to a message so far."""
        return self._taken.get((site, flower_run_id), {}).get(message_id) or Taken()

    def taken_with(self, site: str, session_id: str) -> Taken:
        """What came in reply to the message whose reply opened the session, in all its sessions."""
        return self.taken(site, *self._sessions.get(site, {}).get(session_id, (0, _OLD)))

    def took_reply(self, site: str, flower_run_id: int, message_id: str) -> None:
        """Count a reply that the SuperLink took."""
        self._count(site, flower_run_id, message_id).replies += 1

    def took_object(self, site: str, session_id: str, size_bytes: int) -> None:
        """Count an object that the SuperLink took into a session of the site."""
        of_message = self._count(site, *self._sessions.get(site, {}).get(session_id, (0, _OLD)))
        of_message.objects += 1
        of_message.size_bytes += size_bytes

    async def deliver(self, site: str, flower_run_id: int, message_id: str, objects: Iterable[str]) -> None:
        """Note a message that is about to be given to the site. Raises StorageError."""
        known = self._messages.setdefault((site, flower_run_id), {})
        dropped = list(known)[: max(0, len(known) + 1 - KEPT_MESSAGES)]
        key = (site, str(flower_run_id))
        rows = [(*key, message_id, object_id) for object_id in (_WHOLE, *objects)]
        await asyncio.to_thread(self._write, [(_DROP_MESSAGE, [(*key, one) for one in dropped]), (_PUT_OBJECT, rows)])
        for one in dropped:
            known.pop(one, None)
            self._taken.get((site, flower_run_id), {}).pop(one, None)
        known[message_id] = frozenset(row[3] for row in rows[1:])

    async def confirm(self, site: str, flower_run_id: int, message_id: str) -> None:
        """The site has the objects of this message; they are no longer given out. Raises StorageError."""
        known = self._of(site, flower_run_id)
        if known.get(message_id):
            await asyncio.to_thread(self._write, [(_DROP_OBJECTS, [(site, str(flower_run_id), message_id)])])
            known[message_id] = frozenset()

    async def open(self, site: str, flower_run_id: int, message_id: str, session_id: str) -> None:
        """Note the session that a reply of the site to a message has opened. Raises StorageError."""
        known = self._sessions.setdefault(site, {})
        dropped = list(known)[: max(0, len(known) + 1 - KEPT_SESSIONS)]
        row = (session_id, site, str(flower_run_id))
        await asyncio.to_thread(self._write, [(_DROP_SESSION, [(one,) for one in dropped]), (_PUT_SESSION, [row])])
        for one in dropped:
            known.pop(one, None)
        known[session_id] = (flower_run_id, message_id)

    def _of(self, site: str, flower_run_id: int) -> dict[str, frozenset[str]]:
        return self._messages.get((site, flower_run_id), {})

    def _count(self, site: str, flower_run_id: int, message_id: str) -> Taken:
        return self._taken.setdefault((site, flower_run_id), {}).setdefault(message_id, Taken())

    def _write(self, statements: Sequence[tuple[str, Sequence[tuple[str, ...]]]]) -> None:
        with self._state.writing() as database:
            for statement, rows in statements:
                database.executemany(statement, rows)

    def _load(self) -> None:
        found: dict[_Run, dict[str, set[str]]] = {}
        with self._state.reading() as database:
            rows = database.execute("SELECT site, flower_run_id, message_id, object_id FROM addressed").fetchall()
            sessions = database.execute("SELECT session_id, site, flower_run_id FROM push_session ORDER BY rowid").fetchall()
        for site, run, message_id, object_id in rows:
            objects = found.setdefault((site, int(run)), {}).setdefault(message_id, set())
            objects |= {object_id} - {_WHOLE}
        self._messages = {key: {one: frozenset(objects) for one, objects in known.items()} for key, known in found.items()}
        for session_id, site, run in sessions:
            self._sessions.setdefault(site, {})[session_id] = (int(run), _OLD)


_PUT_OBJECT = "INSERT OR IGNORE INTO addressed (site, flower_run_id, message_id, object_id) VALUES (?, ?, ?, ?)"
_DROP_MESSAGE = "DELETE FROM addressed WHERE site = ? AND flower_run_id = ? AND message_id = ?"
_DROP_OBJECTS = f"{_DROP_MESSAGE} AND object_id <> '{_WHOLE}'"
_PUT_SESSION = "INSERT OR REPLACE INTO push_session (session_id, site, flower_run_id) VALUES (?, ?, ?)"
_DROP_SESSION = "DELETE FROM push_session WHERE session_id = ?"
