# SPDX-License-Identifier: Apache-2.0
"""The fingerprints of all images of a cohort, kept in `ingest/hashes.npy`: a second check, or one that was stopped, reads no pixel twice.

Each stored row carries a checksum, so a row that a crash cut in half is made again. `hashes.json` names the file of images that the rows
were made from (digest, size, time of change); where that file has changed since, each image's pixels are hashed anew and only what
differs is worked out again. Where nothing can be written the fingerprints are made in memory.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from client.cohorts.fingerprints import FINGERPRINT, digests, fingerprints
from common.errors import StorageError
from common.files import write_atomic

HASHES: Final = "hashes.npy"
ORIGIN: Final = "hashes.json"
VERSION: Final = 1
_BLOCK_BYTES: Final = 8_000_000
_ROW: Final = np.dtype([("print", FINGERPRINT), ("check", "<u4")])
Progress = Callable[[int], None]
Rows = npt.NDArray[np.void]


@dataclass(frozen=True)
class Origin:
    """The file of images that fingerprints were made from."""

    sha256: str
    size_bytes: int
    changed_ns: int

    @classmethod
    def of(cls, path: Path, sha256: str) -> Origin:
        """Of the file as it is now; `sha256` is what it should have."""
        facts = path.stat()
        return cls(sha256, facts.st_size, facts.st_mtime_ns)

    def to_json(self) -> str:
        """As it is stored."""
        return json.dumps({"version": VERSION, **self.__dict__}, sort_keys=True)


def was_read(folder: Path, origin: Origin) -> bool:
    """Whether fingerprints were made from this very file before."""
    return _read(folder / ORIGIN) == origin.to_json()


def all_fingerprints(images: npt.NDArray[Any], folder: Path, origin: Origin, progress: Progress, workers: int = 0) -> Rows:
    """`FINGERPRINT` [N] of memory-mapped images, kept in `folder`. `progress` is told how many more are done.

    `workers` threads, by default one a core. Interrupted, it keeps what is done.
    """
    rows, is_same = _opened(folder, len(images), origin)
    known = _is_whole(rows)
    progress(int(np.count_nonzero(known)) if is_same else 0)
    starts = _blocks(images, known if is_same else np.zeros(len(images), np.bool_))
    for start, made in _in_parallel(lambda start: _made(images, rows, known, start), starts, workers or os.cpu_count() or 1):
        rows[start : start + len(made)] = made
        progress(len(made))
    if isinstance(rows, np.memmap):
        rows.flush()
        if not is_same:
            write_atomic(folder / ORIGIN, origin.to_json())
    found: Rows = np.array(rows["print"])
    return found


def _opened(folder: Path, count: int, origin: Origin) -> tuple[Rows, bool]:
    """The stored rows, and whether they were made from this very file; new ones where there are none."""
    with suppress(OSError, ValueError):
        stored = np.lib.format.open_memmap(folder / HASHES, mode="r+")
        if stored.shape == (count,) and stored.dtype == _ROW:
            return stored, was_read(folder, origin)
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        (folder / HASHES).unlink(missing_ok=True)
        os.close(os.open(folder / HASHES, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        rows = np.lib.format.open_memmap(folder / HASHES, mode="w+", dtype=_ROW, shape=(count,))
        write_atomic(folder / ORIGIN, origin.to_json())
    except (OSError, StorageError):
        return np.zeros(count, _ROW), True
    return rows, True


def _read(path: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="utf-8")
    return ""


def _is_whole(rows: Rows) -> npt.NDArray[np.bool_]:
    whole: npt.NDArray[np.bool_] = np.array(rows["check"]) == _checks(np.ascontiguousarray(rows["print"]))
    return whole


def _checks(prints: Rows) -> npt.NDArray[np.uint32]:
    return np.array([zlib.crc32(one.tobytes()) for one in prints], dtype=np.uint32)


def _blocks(images: npt.NDArray[Any], known: npt.NDArray[np.bool_]) -> list[int]:
    """First rows of the blocks in which something is not known."""
    size = _block_rows(images)
    return [start for start in range(0, len(images), size) if not known[start : start + size].all()]


def _block_rows(images: npt.NDArray[Any]) -> int:
    return max(1, _BLOCK_BYTES // max(images[:1].nbytes, 1))


def _made(images: npt.NDArray[Any], rows: Rows, known: npt.NDArray[np.bool_], start: int) -> Rows:
    """The rows of one block: what is stored for the same pixels stays."""
    part = slice(start, start + _block_rows(images))
    block, made = np.asarray(images[part]), np.array(rows[part])
    stays = known[part].copy()
    if stays.any():
        stays &= (digests(block) == made["print"]["sha256"]).all(axis=1)
    new = np.flatnonzero(~stays)
    made["print"][new] = fingerprints(block[new])
    made["check"][new] = _checks(made["print"][new])
    return made


def _in_parallel(make: Callable[[int], Rows], starts: list[int], workers: int) -> Iterator[tuple[int, Rows]]:
    """Each block's rows in order, made by threads: hashing and averaging let go of Python's lock."""
    with ThreadPoolExecutor(max_workers=workers) as pool:
        jobs: list[Future[Rows]] = [pool.submit(make, start) for start in starts]
        try:
            for start, job in zip(starts, jobs, strict=True):
                yield start, job.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
