# SPDX-License-Identifier: Apache-2.0
"""The files of a built cohort, as a reader sees them: `cohort.json`, the manifest, and the array of images.

    cohort.json     what the cohort is: kind, sizes, columns, digests of the other files, and a tag by the site's key over all of it
    manifest.csv    a line for each row of the cohort (or manifest.parquet, every cell as text): `patient`, `image` (its row in
                    images.npy; empty in a table without images), the label columns, `split` if the source had one, the listed columns
    images.npy      uint8 or uint16 [N, S, S] or [N, S, S, 3]

`patient` is a pseudonym (`client.pseudonyms`). The tag can only be checked at the site, which has the key; the digests by anybody.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from common.data.cohort import IntArray
from common.data.sources import file_sha256
from common.errors import DataError

COHORT_FILE: Final = "cohort.json"
MANIFEST_CSV: Final = "manifest.csv"
MANIFEST_PARQUET: Final = "manifest.parquet"
IMAGES: Final = "images.npy"
PATIENT, IMAGE, SPLIT = "patient", "image", "split"
OWN_COLUMNS: Final = (PATIENT, IMAGE, SPLIT)
MISSING: Final = frozenset({"", "?"})
"""Cells that say that a value is not there."""
_MOST_COHORT_BYTES: Final = 1_000_000


class ImagesEntry(BaseModel):
    """The array of images. `size_pixels` is height and width, `size_bytes` the size of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size_pixels: int
    channels: Literal[1, 3]
    bits: Literal[8, 16]
    count: int
    size_bytes: int
    sha256: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return (self.count, self.size_pixels, self.size_pixels, *((3,) if self.channels == 3 else ()))


class CohortFile(BaseModel):
    """`cohort.json`. `columns` maps each listed column to its kind; label columns and `split` are not among them.

    `rows` and `patients` count the manifest's; `refused` the source files that did not enter. `remarks` say what was done to the images.
    `key_tag` names the site's key, `tag` is its HMAC over everything else (`client.cohorts.layout`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    kind: Literal["image", "tabular"]
    images: ImagesEntry | None
    label_columns: tuple[str, ...]
    columns: dict[str, Literal["number", "text"]]
    has_split: bool
    rows: int
    patients: int
    refused: int
    manifest: Literal["manifest.csv", "manifest.parquet"]
    manifest_sha256: str
    remarks: tuple[str, ...] = ()
    key_tag: str = ""
    tag: str = ""

    @property
    def sealed_bytes(self) -> bytes:
        """What the tag is made of: everything but the tag, as canonical JSON."""
        content = self.model_dump(mode="json", exclude={"tag"})
        return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @property
    def digest(self) -> str:
        """SHA-256 of everything but the tag: names the whole cohort, through the digests of its files."""
        return hashlib.sha256(self.sealed_bytes).hexdigest()

    @classmethod
    def read(cls, folder: Path) -> CohortFile:
        """Read `cohort.json`. Raises DataError with what is missing or wrong."""
        path = folder / COHORT_FILE
        if not path.exists():
            raise DataError(f"{folder}: is no cohort, it has no {COHORT_FILE}; make one with `wardround-client cohort build`")
        try:
            if path.stat().st_size > _MOST_COHORT_BYTES:
                raise DataError(f"{path}: larger than {_MOST_COHORT_BYTES:,} bytes; build the cohort again")
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except ValidationError as error:
            raise DataError(f"{path}: not a cohort of this version ({error.error_count()} problems); build the cohort again") from error
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{path}: cannot be read ({error}); check its permissions, or build the cohort again") from error


@dataclass(frozen=True)
class Manifest:
    """The rows of a cohort.

    `patients` [R] are pseudonyms; `images` int64 [R] rows of the array of images, None in a table; `cells` holds every other column as
    text, [R] each.
    """

    patients: list[str]
    images: IntArray | None
    cells: dict[str, list[str]]

    def __len__(self) -> int:
        return len(self.patients)


def read_manifest(folder: Path, cohort: CohortFile) -> Manifest:
    """The manifest, after its digest was compared. Raises DataError."""
    path = folder / cohort.manifest
    found = file_sha256(path)
    if found != cohort.manifest_sha256:
        raise DataError(f"{path}: was changed after the cohort was built; build the cohort again")
    columns = _read_parquet(path) if cohort.manifest == MANIFEST_PARQUET else _read_csv(path)
    wanted = [PATIENT, IMAGE, *cohort.label_columns, *([SPLIT] if cohort.has_split else []), *cohort.columns]
    lengths = {len(values) for values in columns.values()}
    if list(columns) != wanted or lengths - {cohort.rows}:
        raise DataError(f"{path}: has not the columns and rows that {COHORT_FILE} says; build the cohort again")
    patients, numbers = columns.pop(PATIENT), columns.pop(IMAGE)
    return Manifest(patients, None if cohort.images is None else _image_rows(numbers, cohort.images.count, path), columns)


def open_images(folder: Path, cohort: CohortFile) -> npt.NDArray[Any]:
    """The array of images, memory-mapped and read-only, after its size and header were compared. Raises DataError."""
    path = folder / IMAGES
    if cohort.images is None:
        raise DataError(f"{folder}: is a table and has no images; the study has to say data.kind: tabular")
    try:
        size_bytes = path.stat().st_size
        images: npt.NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: cannot be opened ({error}); build the cohort again") from error
    wanted = np.uint8 if cohort.images.bits == 8 else np.uint16
    if size_bytes != cohort.images.size_bytes or images.shape != cohort.images.shape or images.dtype != wanted:
        raise DataError(f"{path}: is not the array that {COHORT_FILE} describes; build the cohort again")
    return images


def _read_csv(path: Path) -> dict[str, list[str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            return _by_column(header, list(lines), path)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}); build the cohort again") from error


def _by_column(header: list[str], lines: list[list[str]], path: Path) -> dict[str, list[str]]:
    if len(set(header)) != len(header) or any(len(line) != len(header) for line in lines):
        raise DataError(f"{path}: its lines do not have one cell for each column; build the cohort again")
    return {name: [line[number] for line in lines] for number, name in enumerate(header)}


def _read_parquet(path: Path) -> dict[str, list[str]]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import read_table
    except ImportError as error:
        raise DataError(f"{path}: reading Parquet needs pyarrow; pip install 'wardround[parquet]'") from error
    try:
        columns: dict[str, list[str]] = read_table(path).to_pydict()
    except (OSError, ArrowException) as error:
        raise DataError(f"{path}: cannot be read ({error}); build the cohort again") from error
    return columns


def _image_rows(cells: Sequence[str], count: int, path: Path) -> IntArray:
    try:
        rows = np.array([int(cell) for cell in cells], dtype=np.int64)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{path}: column {IMAGE} holds a cell that is no row number; build the cohort again") from error
    if len(rows) and (rows.min() < 0 or rows.max() >= count or len(np.unique(rows)) < len(rows)):
        raise DataError(f"{path}: column {IMAGE} does not name rows of {IMAGES}, each once; build the cohort again")
    return rows
