# SPDX-License-Identifier: Apache-2.0
"""A disk after a power cut, built from the log of `disk_shim.c`: only what was synced is there.

A file's bytes last when the file was synced after they were written. A name lasts when the folder was synced after it changed; until
then the folder has the names of its last sync. With `chance`, what was not synced may last too, each write and each state of the folder
by chance: a disk writes in any order, and is not forced to lose anything.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

_HEAD = struct.Struct("=4Q")


@dataclass(frozen=True)
class Operation:
    kind: str
    inode: int
    offset: int
    text: str
    data: bytes


@dataclass
class File:
    """`lasting` is what a power cut leaves."""

    lasting: bytearray = field(default_factory=bytearray)
    pending: list[Operation] = field(default_factory=list)

    def content(self, chance: Random | None = None, *, everything: bool = False) -> bytes:
        content = bytearray(self.lasting)
        for operation in self.pending:
            if everything or (chance is not None and chance.random() < 0.5):
                change(content, operation)
        return bytes(content)


def read_log(content: bytes) -> Iterator[Operation]:
    at = 0
    while at < len(content):
        kind = chr(content[at])
        inode, offset, length, text_length = _HEAD.unpack_from(content, at + 1)
        at += 1 + _HEAD.size
        text = content[at : at + text_length].decode()
        at += text_length
        size = length if kind == "w" else 0
        yield Operation(kind, inode, offset, text, content[at : at + size])
        at += size


class Disk:
    """One folder. Names are file names; an inode number may be used again by a later file."""

    def __init__(self, folder: Path) -> None:
        self._folder_inode = folder.stat().st_ino
        self._files: dict[int, File] = {}
        self.names: dict[str, File] = {}
        self.lasting_names: dict[str, File] = {}
        self._between: list[dict[str, File]] = []

    def add(self, path: Path, file: File) -> None:
        """A file that is there from the start."""
        self._files[path.stat().st_ino] = self.names[path.name] = file

    def apply(self, operation: Operation) -> None:
        if operation.kind in "wt":
            self._files[operation.inode].pending.append(operation)
        elif operation.kind == "s" and operation.inode == self._folder_inode:
            self.lasting_names, self._between = dict(self.names), []
        elif operation.kind == "s":
            file = self._files[operation.inode]
            file.lasting, file.pending = bytearray(file.content(everything=True)), []
        else:
            self._change_names(operation)
            self._between.append(dict(self.names))

    def _change_names(self, operation: Operation) -> None:
        old, _, new = (Path(part).name for part in operation.text.partition("\n"))
        if operation.kind == "c" and (old not in self.names or self.names[old] is not self._files.get(operation.inode)):
            self._files[operation.inode] = self.names[old] = File()
        elif operation.kind == "u":
            self.names.pop(old)
        elif operation.kind == "r":
            self.names[new] = self.names.pop(old)

    def after_power_cut(self, chance: Random | None) -> dict[str, bytes]:
        """The files that are there, by name."""
        names = self.lasting_names if chance is None else chance.choice([self.lasting_names, *self._between])
        return {name: file.content(chance) for name, file in names.items()}


def change(content: bytearray, operation: Operation) -> None:
    if operation.kind == "t":
        del content[operation.offset :]
        content.extend(bytes(operation.offset - len(content)))
        return
    content.extend(bytes(max(0, operation.offset + len(operation.data) - len(content))))
    content[operation.offset : operation.offset + len(operation.data)] = operation.data


def put(files: dict[str, bytes], folder: Path) -> None:
    """Write files into an empty folder."""
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
        (folder / name).chmod(0o600)
