# SPDX-License-Identifier: Apache-2.0
"""The last step of a build: what was decoded becomes the files of the cohort, complete under their own name or not there at all.

All images of a cohort have one size: that of the largest, which is at most the size that was asked for. One that is smaller is enlarged
bilinearly by a factor of two at most; one that is smaller still is refused, because it would show nothing that the others show.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from client.cohorts.columns import kind_of
from client.cohorts.ingest import refused_record
from client.cohorts.joining import Decision
from client.cohorts.layout import INGEST, files_path, refused_path, sealed
from client.cohorts.pixels import Bits, enlarge
from client.cohorts.tables import Listed
from common.crypto.secrets import Secret
from common.data.cohort_file import COHORT_FILE, IMAGE, MANIFEST_CSV, MANIFEST_PARQUET, PATIENT, SPLIT, CohortFile, ImagesEntry
from common.data.resize import MOST_ENLARGED
from common.data.sources import file_sha256
from common.errors import DataError, StorageError
from common.files import sync_folder

Channels = Literal[1, 3]


@dataclass(frozen=True)
class Shape:
    """The one shape of all images: `count` of them, square."""

    count: int
    size_pixels: int
    channels: Channels

    @classmethod
    def of(cls, sides: Sequence[int], channels: Sequence[int]) -> Shape:
        """For usable frames with these sides and channels; what is too small for the largest does not count."""
        size = max(sides, default=0)
        kept = [number for side, number in zip(sides, channels, strict=True) if side * MOST_ENLARGED >= size]
        return cls(len(kept), size, cast(Channels, max(kept, default=1)))

    def fits(self, decision: Decision) -> Decision:
        """The decision, or a refusal of an image that is too small beside the others."""
        if decision.frame is None or decision.frame.side * MOST_ENLARGED >= self.size_pixels:
            return decision
        side = decision.frame.side
        text = f"is {side} pixels wide, less than half of the others' {self.size_pixels}; build with --size {side}, or take it out"
        return Decision(refused_record(decision.record, text))


@dataclass
class Contents:
    """What a cohort's text files will say. `rows` are the manifest's: pseudonym, row of the images (empty in a table), cells."""

    listed: Listed
    rows: list[tuple[str, ...]] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the manifest's columns."""
        split = (SPLIT,) if self.listed.split else ()
        return (PATIENT, IMAGE, *self.listed.labels, *split, *self.listed.columns)

    @property
    def patients(self) -> int:
        """How many different ones."""
        return len({row[0] for row in self.rows})

    def kinds(self) -> dict[str, Literal["number", "text"]]:
        """Of each listed column that is neither label nor split."""
        return {name: kind_of([row[self.header.index(name)] for row in self.rows]) for name in self.listed.columns}


class Hashing:
    """A file that is hashed while it is written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size_bytes = 0

    def write(self, content: bytes) -> int:
        """Write and hash."""
        self.digest.update(content)
        self.size_bytes += len(content)
        return self._file.write(content)


def write_images(path: Path, shape: Shape, bits: Bits, images: Iterable[npt.NDArray[Any]]) -> ImagesEntry:
    """Write the array, one image at a time. Raises StorageError when it is not as many images as `shape` says."""
    dtype = np.dtype(np.uint8 if bits == 8 else np.uint16)
    entry = ImagesEntry(size_pixels=shape.size_pixels, channels=shape.channels, bits=bits, count=shape.count, size_bytes=0, sha256="")
    written = 0
    with path.open("wb") as file:
        hashing = Hashing(file)
        header = {"descr": dtype.str, "fortran_order": False, "shape": entry.shape}
        np.lib.format.write_array_header_1_0(hashing, header)
        for image in images:
            hashing.write(_fitted(image, shape).tobytes())
            written += 1
        file.flush()
        os.fsync(file.fileno())
    if written != shape.count:
        raise StorageError(f"{path}: {written} images were written and {shape.count} announced; run the command again")
    return entry.model_copy(update={"size_bytes": hashing.size_bytes, "sha256": hashing.digest.hexdigest()})


def _fitted(image: npt.NDArray[Any], shape: Shape) -> npt.NDArray[Any]:
    if len(image) < shape.size_pixels:
        image = enlarge(image, shape.size_pixels)
    if shape.channels == 3 and image.ndim == 2:
        image = np.repeat(image[..., None], 3, axis=2)
    return np.ascontiguousarray(image)


def write_records(folder: Path, decisions: Iterable[Decision], contents: Contents) -> Iterator[Decision]:
    """Pass on each decision that enters, with the number of its image; write every record, and remember rows and refusals."""
    path = files_path(folder)
    path.parent.mkdir(mode=0o700)
    with path.open("w", encoding="utf-8") as file:
        for decision in decisions:
            record = decision.record
            if decision.frame is not None:
                record = record.model_copy(update={"image": len(contents.rows)})
                contents.rows.append((str(record.patient), str(record.image), *decision.cells))
                contents.remarks.update(record.remarks)
                yield decision
            else:
                contents.refused.append((_frame_name(record.source, record.frame), str(record.problem)))
            file.write(record.line())


def _frame_name(source: str, frame: int) -> str:
    return f"{source} (frame {frame})" if frame else source


def write_cohort(folder: Path, contents: Contents, images: ImagesEntry | None, secret: Secret, *, parquet: bool) -> CohortFile:
    """Manifest, list of refusals, and last `cohort.json`; all of it durable. Raises DataError when Parquet is asked for without pyarrow."""
    (folder / INGEST).mkdir(mode=0o700, exist_ok=True)
    _write_csv(refused_path(folder), ("file", "reason"), contents.refused)
    name: Literal["manifest.csv", "manifest.parquet"] = MANIFEST_PARQUET if parquet else MANIFEST_CSV
    writer = _write_parquet if parquet else _write_csv
    writer(folder / name, contents.header, contents.rows)
    cohort = CohortFile(
        kind="tabular" if images is None else "image",
        images=images,
        label_columns=contents.listed.labels,
        columns=contents.kinds(),
        has_split=contents.listed.split is not None,
        rows=len(contents.rows),
        patients=contents.patients,
        refused=len(contents.refused),
        manifest=name,
        manifest_sha256=file_sha256(folder / name),
        remarks=tuple(f"{count} image{'s' if count > 1 else ''}: {text}" for text, count in sorted(contents.remarks.items())),
    )
    cohort = sealed(cohort, secret)
    with (folder / COHORT_FILE).open("w", encoding="utf-8") as file:
        file.write(cohort.model_dump_json(indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)
    return cohort


def _write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(rows)
        file.flush()
        os.fsync(file.fileno())


def _write_parquet(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    try:
        import pyarrow as arrow
        from pyarrow.parquet import write_table
    except ImportError as error:
        raise DataError("--parquet needs pyarrow; pip install 'wardround[parquet]', or build without --parquet") from error
    schema = arrow.schema([(name, arrow.string()) for name in header])
    cells = {name: [row[number] for row in rows] for number, name in enumerate(header)}
    write_table(arrow.table(cells, schema=schema), path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
