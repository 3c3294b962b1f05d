# SPDX-License-Identifier: Apache-2.0
"""Where images come from: the contract of a reader, and the registry of readers by `data.source`.

A reader decides how bytes on disk become a `RawTable`, and what names those bytes completely (`fingerprint`). It raises DataError
for what it cannot read at all. Everything else is the framework's: values are checked in `checks`, sizes changed and results
stored in `store`. Calling a reader twice on the same bytes gives the same table.

To add a reader (DICOM, NIfTI): write one file beside this one with a class that has the two methods, bring its pixels to 8 bits
with a documented public window, and name it in `READERS` and in `common.study_data.Data.source`. A reader whose rows are features
rather than images (`data.kind: tabular`) sets `features`, made by `table_features.features_of`, and leaves `images` empty.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from common import study
from common.data.blocks import Images
from common.data.cohort import ByteArray, FloatArray
from common.errors import DataError

Column = npt.NDArray[Any]

READERS = {
    "phantom": "common.data.phantom:PhantomReader",
    "npz": "common.data.npz:NpzReader",
    "medmnist": "common.data.medmnist:MedMnistReader",
    "folder": "common.data.folder:FolderReader",
    "cohort": "common.data.cohort_folder:CohortReader",
    "csv": "common.data.csv_table:CsvReader",
}

READS_FOLDERS = ("folder", "cohort", "csv")
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class RawTable:
    """What a reader found, not checked yet.

    `images` should be uint8 [N, H, W] or [N, H, W, 3], an array or `LazyImages`; `labels` [N] are the numbers in the file or names of
    classes; `patient_ids` [N] are strings or integers, or None when every image is a patient of its own. `split` is the official split,
    uint8 [N] of `cohort.Split`. `columns` holds further facts, [N] each; `natural_sites` names the column that is the real site.
    `features` float32 [N, F] (tabular) stands in place of images, which are then `no_images(N)`; a row of NaN is left out.
    `where` names the source in messages: a file name, never a whole path. `remarks` say what was done to the images on the way, for
    whoever runs on them.
    """

    where: str
    images: Images
    labels: npt.NDArray[Any]
    patient_ids: npt.NDArray[Any] | None
    split: ByteArray | None = None
    columns: dict[str, Column] = field(default_factory=dict)
    natural_sites: str | None = None
    synthetic: bool = False
    remarks: tuple[str, ...] = ()
    features: FloatArray | None = None


def no_images(rows: int) -> ByteArray:
    """The `images` of a table: uint8 [rows, 0, 0]."""
    return np.empty((rows, 0, 0), dtype=np.uint8)


class Reader(Protocol):
    """Turns one kind of source into a `RawTable`."""

    def fingerprint(self, data: study.Data, path: Path | None) -> str:
        """SHA-256 (hexadecimal) that names the content of the source. Raises DataError when there is nothing at `path`."""
        ...

    def read(self, data: study.Data, path: Path | None) -> RawTable:
        """Read everything. Raises DataError with all problems found."""
        ...


def reader_for(source: str) -> Reader:
    """The reader of `data.source`; its module is imported only now. Raises DataError on an unknown name."""
    if source not in READERS:
        raise DataError(f"data.source: there is no reader {source!r}; choose one of {', '.join(sorted(READERS))}")
    module, name = READERS[source].split(":")
    reader: Reader = getattr(import_module(module), name)()
    return reader


def required_path(source: str, path: Path | None) -> Path:
    """`path`, or DataError with what to do when it was not given, nothing is there, or it is a folder where a file is read."""
    if path is None:
        raise DataError(f"data.source: {source} reads a file or folder and none was given; add --data PATH")
    if not path.exists():
        raise DataError(f"{path}: there is no such file or folder; check --data")
    if source not in READS_FOLDERS and path.is_dir():
        raise DataError(f"{path}: is a folder, the study says data.source: {source}; set data.source: folder, or name the npz file")
    return path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal. Raises DataError when it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
    return digest.hexdigest()
