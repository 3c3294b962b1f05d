# SPDX-License-Identifier: Apache-2.0
"""Flower's object store with large objects in files beside its database.

Flower keeps what travels (models and updates in pieces of 5 MB) in SQLite; there each piece is written twice and its pages are freed again
soon after, under the one lock that every other call waits for. Here the database keeps everything but the bytes of large objects: those
lie in a folder, one file an object, under its digest. The folder is as private as the database.

Our own processes on the same machine read and write the files there (`large_objects`).

A file is written whole beside its place before the database says that the object is there, and removed after the transaction that forgot
the object. It is not synced: an update that a power cut takes away is asked for again. What is left in the folder at the start is checked
against its name, so a torn file is never handed out.
"""

from __future__ import annotations

import hashlib
import threading
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import cast

from flwr.supercore.inflatable.inflatable_object import get_object_id
from flwr.supercore.inflatable.inflatable_utils import validate_object_content
from flwr.supercore.object_store.object_store import ObjectStore
from flwr.supercore.object_store.sql_object_store import SqlObjectStore
from flwr.supercore.state.schema.objectstore_models import StoredObject
from sqlalchemy import event, update
from sqlalchemy.orm import Session
from typing_extensions import override

from common.flower_compat.large_objects import IN_A_FILE, LARGE_BYTES, file_number, is_digest, objects_folder, remove_if_same, write_object


class FileObjectStore(SqlObjectStore):
    """The store of the SuperLink whose database is the file `database`."""

    def __init__(self, database: str) -> None:
        super().__init__(database, verify=False)
        self._folder = objects_folder(Path(database))

    def open(self) -> None:
        """Make what is missing, and drop what a crash has torn."""
        self.initialize()
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for path in self._folder.iterdir():
            if path.name not in self:
                path.unlink()
            elif hashlib.sha256(path.read_bytes()).hexdigest() != path.name:
                self._lose(path)

    def has_file(self, object_id: str) -> bool:
        """Whether there is a file of that name: its writer has checked the digest, and put it there in one step."""
        return is_digest(object_id) and (self._folder / object_id).exists()

    @override
    def put(self, object_id: str, object_content: bytes) -> None:
        """Keep an object that was announced, or note that one of our processes has put it into its file.

        Raises ValueError when it is not what its id says, or no object; OSError when the disk is full.
        """
        if object_content == IN_A_FILE:
            self._check_file(object_id)
        elif len(object_content) >= LARGE_BYTES:
            validate_object_content(content=object_content)
            write_object(self._folder, object_id, object_content)
            object_content = IN_A_FILE
        else:
            if object_id != get_object_id(object_content):
                raise ValueError(f"Object ID {object_id} does not match content hash")
            validate_object_content(content=object_content)
        super().put(object_id, object_content)

    def _check_file(self, object_id: str) -> None:
        """Raises ValueError unless there is a file of that name that holds an object; its writer has checked the digest.

        Only the object's head is read: a mapped file has what Flower's check needs of bytes.
        """
        try:
            with (self._folder / object_id).open("rb") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
                validate_object_content(content=cast(bytes, content))
        except FileNotFoundError:
            raise ValueError(f"Object ID {object_id}: there is no such file") from None

    @override
    def get(self, object_id: str) -> bytes | None:
        """The object; empty bytes while it is announced and not there, None if it is not known."""
        content = super().get(object_id)
        if content != IN_A_FILE:
            return content
        try:
            return (self._folder / object_id).read_bytes()
        except FileNotFoundError:
            return b""

    @override
    def delete(self, object_id: str) -> None:
        """Forget an object, and what only it was made of."""
        with self.session() as session:
            super().delete(object_id)
            path = self._folder / object_id
            number = file_number(path)
            if number is not None and object_id not in self:
                self._remove_after(session, path, number)

    def _remove_after(self, session: Session, path: Path, number: int) -> None:
        """Remove a file once the transaction that forgot it is through, unless the object has come again; after a rollback it stays."""

        event.listen(session, "after_commit", lambda _: remove_if_same(path, number), once=True)

    def _lose(self, path: Path) -> None:
        with self.session() as session:
            session.execute(update(StoredObject).where(StoredObject.object_id == path.name).values(content=b"", is_available=0))
        path.unlink()


class FileObjectStoreFactory:
    """In place of Flower's factory: one store for the process."""

    def __init__(self, database: str) -> None:
        self._database = database
        self._store: FileObjectStore | None = None
        self._lock = threading.Lock()

    def store(self) -> ObjectStore:
        """The store, opened at the first call."""
        with self._lock:
            if self._store is None:
                store = FileObjectStore(self._database)
                store.open()
                self._store = store
            return self._store
