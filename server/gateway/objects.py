# SPDX-License-Identifier: Apache-2.0
"""Large objects go to a site, and come from it, straight through the SuperLink's folder on this machine.

Who may ask for an object or send one is decided before, as for any call. An object is named by its digest, so its bytes are the same from
the file as from the SuperLink; on the way out they are read piece by piece and are never whole in memory. On the way in they go into a
file as they come, are held against the digest and put into their place, and the SuperLink gets a few bytes that stand for them; what it
does not take goes again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.errors import StorageError
from common.flower_compat.fleet_records import MEDIA_TYPE, ObjectOpening, object_answer_head, split_object
from common.flower_compat.large_objects import IN_A_FILE, LARGE_BYTES, ObjectWriter, objects_folder, remove_if_same, write_object
from server.gateway.answers import Sender
from server.gateway.denied import Code, Denied

PIECE_BYTES: Final = 1 << 18
BLOCK_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class Arrived:
    """A push-object as the SuperLink gets it. `path` and `number` name the file that was made for it, if one was that was not there."""

    body: bytes
    path: Path | None = None
    number: int = 0


class LargeObjects:
    """The files of the SuperLink whose database is `database`."""

    def __init__(self, database: Path) -> None:
        self._folder = objects_folder(database)

    async def send(self, object_id: str, answer: Sender) -> bool:
        """Answer pull-object for an id that was checked; False, and nothing sent, when there is no such file."""
        try:
            file = (self._folder / object_id).open("rb")
        except FileNotFoundError:
            return False
        with file:
            size_bytes = os.fstat(file.fileno()).st_size
            head = object_answer_head(size_bytes)
            await answer.head(200, [(b"content-type", MEDIA_TYPE.encode()), (b"content-length", str(len(head) + size_bytes).encode())])
            piece = head + file.read(PIECE_BYTES)
            while piece:
                await answer({"type": "http.response.body", "body": piece, "more_body": True})
                piece = file.read(PIECE_BYTES)
        await answer({"type": "http.response.body", "body": b"", "more_body": False})
        return True

    async def keep(self, body: bytes) -> Arrived:
        """Put what a site pushes into its file, if it is large and what its id says; anything else is left to the SuperLink.

        Raises Denied for bytes that stand for a file: only this process may send them.
        """
        object_id, content, with_content = split_object(body)
        if bytes(content[: len(IN_A_FILE) + 1]) == IN_A_FILE:
            raise Denied(400, Code.MALFORMED, "push-object: that is no object")
        if len(content) < LARGE_BYTES:
            return Arrived(body)
        path = self._folder / object_id
        is_new = not path.exists()
        try:
            number = await asyncio.to_thread(write_object, self._folder, object_id, content)
        except (OSError, ValueError):
            return Arrived(body)
        return Arrived(with_content(IN_A_FILE), path if is_new else None, number)

    async def receive(self, opening: ObjectOpening, beginning: bytes, parts: AsyncIterator[bytes]) -> Arrived | None:
        """As `keep`, but the content goes into the file as it comes, and is never whole in memory; None when it is not what its id says.

        Raises StorageError when it cannot be written, and what reading the parts raises; then nothing is left behind.
        """
        path = self._folder / opening.call.object_id
        is_new = not path.exists()
        try:
            with ObjectWriter(self._folder, path.name) as writer:
                async for some in _in_blocks(beginning[opening.start :], parts):
                    await asyncio.to_thread(writer.write, some)
                number = writer.finish()
        except ValueError:
            return None
        except OSError as error:
            async for _ in parts:  # who is still sending does not hear the answer
                pass
            raise StorageError(f"cannot write into {self._folder}: {error.strerror or error}; check free space and permissions") from error
        return Arrived(opening.with_content(IN_A_FILE), path if is_new else None, number)

    def forget(self, arrived: Arrived) -> None:
        """Remove the file of an object that the SuperLink has not taken."""
        if arrived.path is not None:
            remove_if_same(arrived.path, arrived.number)


async def _in_blocks(first: bytes, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The parts, joined into blocks of about `BLOCK_BYTES`: each is a trip to another thread, so that a slow disk stops nobody else."""
    waiting, size_bytes = [first], len(first)
    async for part in parts:
        waiting.append(part)
        size_bytes += len(part)
        if size_bytes >= BLOCK_BYTES:
            yield b"".join(waiting)
            waiting, size_bytes = [], 0
    yield b"".join(waiting)
