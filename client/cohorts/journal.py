# SPDX-License-Identifier: Apache-2.0
"""What a build has done so far, in `DIR.part/`: another start goes on from there.

    settings        what decides the pixels; with other settings the build starts from nothing
    pixels.bin      the small images, one after the other
    journal.jsonl   a line for each source file, written after its pixels: a stamp of the file's size and times, and for each frame where
                    its pixels are, and its record

A file whose stamp is the same is not decoded again. The stamp is keyed, so it shows no date. What a kill cut in half (a torn line, pixels
without a line) is thrown away; pixels that a power cut lost are found by their checksum when the cohort is put together.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import zlib
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from client.cohorts.ingest import Ingested, PixelSettings, SmallImage
from client.cohorts.records import FileRecord
from client.pseudonyms import Pseudonyms
from common.crypto.secrets import Secret
from common.errors import StorageError
from common.files import write_atomic

_STAMP_PURPOSE: Final = "cohort build stamps"


class StoredFrame(BaseModel):
    """One frame: `offset` and side in pixels.bin, and its record, whose patient is the header's (or nobody yet)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    offset: int
    side: int
    channels: int
    crc32: int
    record: FileRecord


class Entry(BaseModel):
    """One source file. Either frames or the record of its refusal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    stamp: str
    frames: tuple[StoredFrame, ...] = ()
    refused: FileRecord | None = None


class _Place(NamedTuple):
    stamp: str
    offset: int
    length: int


class Journal:
    """The journal of a build in `folder`. Only the place of each line is kept in memory."""

    def __init__(self, folder: Path, settings: PixelSettings, secret: Secret) -> None:
        self.folder = folder
        self._key = secret.derive(_STAMP_PURPOSE)
        self._pseudonyms = Pseudonyms(secret)
        self._places: dict[str, _Place] = {}
        self._dtype = np.dtype(np.uint8 if settings.bits == 8 else np.uint16)
        self._begin(settings)
        self._pixels = (self.folder / "pixels.bin").open("r+b")
        self._lines = (self.folder / "journal.jsonl").open("r+b")
        self._load()

    def close(self) -> None:
        """Close both files."""
        self._pixels.close()
        self._lines.close()

    def stamp(self, path: Path) -> str:
        """Keyed digest of a file's size and times; empty when it cannot be looked at."""
        try:
            facts = path.stat()
        except OSError:
            return ""
        text = f"{facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns} {facts.st_ino}"
        return hmac.new(self._key, text.encode(), hashlib.sha256).hexdigest()[:32]

    def has(self, source: str, stamp: str) -> bool:
        """Whether the file was done before and has not changed since."""
        place = self._places.get(source)
        return place is not None and place.stamp == stamp != ""

    def add(self, source: str, stamp: str, found: Ingested) -> None:
        """Keep what became of a file: pixels first, then the line. Raises StorageError when the disk is full."""
        try:
            frames = tuple(self._store(one) for one in found.frames)
            self._pixels.flush()
            line = Entry(source=source, stamp=stamp, frames=frames, refused=found.refused).model_dump_json(exclude_defaults=True)
            offset = self._lines.seek(0, os.SEEK_END)
            self._lines.write(line.encode() + b"\n")
            self._lines.flush()
        except OSError as error:
            raise StorageError(
                f"cannot write {self.folder}: {error.strerror or error}; free some space and run the command again"
            ) from error
        self._places[source] = _Place(stamp, offset, len(line.encode()))

    def entry(self, source: str) -> Entry:
        """What became of a file."""
        place = self._places[source]
        self._lines.seek(place.offset)
        return Entry.model_validate_json(self._lines.read(place.length))

    def pixels(self, frame: StoredFrame) -> npt.NDArray[Any]:
        """The small image of a frame, [side, side] or [side, side, 3]. Raises StorageError when it was lost."""
        shape = (frame.side, frame.side, *((3,) if frame.channels == 3 else ()))
        self._pixels.seek(frame.offset)
        content = self._pixels.read(int(np.prod(shape)) * self._dtype.itemsize)
        if zlib.crc32(content) != frame.crc32:
            raise StorageError(f"{self.folder}: pixels were lost, as after a power cut; delete this folder and run the command again")
        return np.frombuffer(content, dtype=self._dtype).reshape(shape)

    def _store(self, image: SmallImage) -> StoredFrame:
        content = np.ascontiguousarray(image.pixels).tobytes()
        offset = self._pixels.seek(0, os.SEEK_END)
        self._pixels.write(content)
        identifier = (image.patient_id or "").strip()
        known = identifier and not image.record.refused
        record = image.record.model_copy(update={"patient": self._pseudonyms.of(identifier)}) if known else image.record
        channels = 3 if image.pixels.ndim == 3 else 1
        return StoredFrame(offset=offset, side=len(image.pixels), channels=channels, crc32=zlib.crc32(content), record=record)

    def _begin(self, settings: PixelSettings) -> None:
        """Make the folder; what was made with other settings or another key goes."""
        mark = hmac.new(self._key, settings.words.encode(), hashlib.sha256).hexdigest()
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self.folder / "settings"
            if not path.exists() or path.read_text(encoding="ascii", errors="replace") != mark:
                (self.folder / "journal.jsonl").write_bytes(b"")
                (self.folder / "pixels.bin").write_bytes(b"")
                write_atomic(path, mark)
        except OSError as error:
            raise StorageError(f"cannot write {self.folder}: {error.strerror or error}; check free space and permissions") from error

    def _load(self) -> None:
        """Find each whole line; cut off what follows the last one, and pixels that belong to no line."""
        end, pixels_end = 0, 0
        for line in self._lines:
            entry = _entry(line)
            if entry is None:
                break
            self._places[entry.source] = _Place(entry.stamp, end, len(line) - 1)
            end += len(line)
            pixels_end = max([pixels_end, *(self._end_of(frame) for frame in entry.frames)])
        self._lines.truncate(end)
        self._pixels.truncate(pixels_end)

    def _end_of(self, frame: StoredFrame) -> int:
        return frame.offset + frame.side**2 * frame.channels * self._dtype.itemsize


def _entry(line: bytes) -> Entry | None:
    """The entry of a line; None for a torn one."""
    try:
        return Entry.model_validate_json(line) if line.endswith(b"\n") else None
    except ValidationError:
        return None
