# SPDX-License-Identifier: Apache-2.0
"""One source file, in a process of its own kind: decoded, made small, described. Nothing of it is written here.

What comes back holds the header's patient id where there is one; the process that asked turns it into a pseudonym before anything reaches
the disk. Neither torch nor the site's key is in this process.
"""

from __future__ import annotations

import hashlib
import signal
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy.typing as npt

from client.cohorts.pixels import Bits, stored_pixels
from client.cohorts.records import FileRecord
from common.data.decode import Slices, Window, decode
from common.data.decode.decoded import Decoded
from common.data.decode.identity import name_findings
from common.errors import DataError

NOBODY: Final = "wrp1-" + "0" * 64
"""Stands in a record until its patient is known."""


@dataclass(frozen=True)
class PixelSettings:
    """What decides the pixels of a cohort. Two builds with the same settings and sources make the same pixels."""

    size_pixels: int = 256
    bits: Bits = 8
    window: Window | None = None
    slices: Slices = field(default_factory=Slices)

    @property
    def words(self) -> str:
        """The settings as one line."""
        window = "own" if self.window is None else f"{self.window.centre:g},{self.window.width:g}"
        return f"v1 size={self.size_pixels} bits={self.bits} window={window} axis={self.slices.axis} middle={self.slices.middle_only}"


@dataclass(frozen=True)
class SmallImage:
    """One frame as it will be stored. `patient_id` is the header's, secret."""

    pixels: npt.NDArray[Any]
    patient_id: str | None
    record: FileRecord


@dataclass(frozen=True)
class Ingested:
    """What became of a file: frames, or the record that says why there are none; where its decoder `died`, a later start tries again."""

    frames: tuple[SmallImage, ...] = ()
    refused: FileRecord | None = None
    died: bool = False


def ingest(name: str, path: Path, settings: PixelSettings) -> Ingested:
    """Decode a file and make its images small. A file of which one frame fails is refused as a whole."""
    sha256 = ""
    try:
        sha256 = _sha256(path)
        return Ingested(tuple(_small(name, sha256, one, settings) for one in decode(path, settings.window, settings.slices)))
    except DataError as error:
        return Ingested(refused=refusal(name, str(error), sha256))
    except MemoryError:
        return Ingested(refused=refusal(name, "needs more memory than there is; take the file out, or run with fewer --workers", sha256))


def refusal(name: str, problem: str, sha256: str = "") -> FileRecord:
    """The record of a file that does not enter."""
    return FileRecord(source=name, sha256=sha256, problem=problem, name_findings=name_findings(name))


def _small(name: str, sha256: str, decoded: Decoded, settings: PixelSettings) -> SmallImage:
    record = FileRecord.of(name, sha256, 0, NOBODY, decoded, name_findings=name_findings(name))
    pixels = stored_pixels(decoded.pixels, settings.size_pixels, settings.bits)
    if decoded.constant or (pixels == pixels.flat[0]).all():
        record = refused_record(record, _constant(decoded.constant))
    return SmallImage(pixels, decoded.facts.patient_id, record)


def _constant(in_the_file: bool) -> str:
    if in_the_file:
        return "all its pixels have one value, so it shows nothing; take it out"
    return "all its pixels have one value once it is small and has few bits; build with --window CENTRE,WIDTH or --bits 16"


def refused_record(record: FileRecord, problem: str) -> FileRecord:
    """The record of a decoded frame that does not enter after all."""
    return record.model_copy(update={"image": None, "patient": None, "problem": problem})


def _sha256(path: Path) -> str:
    try:
        if not path.is_file():
            raise DataError("is no file (a folder behind a link, a pipe, a broken link); take it out")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror or error}); check the file and its permissions") from error


def start_worker() -> None:
    """Run at the start of each worker process: Ctrl-C is the parent's affair, and without a parent there is nothing to work for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    import multiprocessing
    import os
    from multiprocessing.connection import wait

    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        sys.stderr.flush()
        os._exit(1)
