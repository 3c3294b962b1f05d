# SPDX-License-Identifier: Apache-2.0
"""Large objects go to a site straight from the SuperLink's folder on this machine; what is not there comes from the SuperLink.

Who may have an object is decided before, as for any call. An object is named by its digest, so its bytes are the same from either place;
from the file they are read piece by piece and are never whole in memory.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from common.flower_compat.fleet_records import MEDIA_TYPE, object_answer_head
from common.flower_compat.superlink import objects_folder
from server.gateway.answers import Sender

PIECE_BYTES: Final = 1 << 18


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
