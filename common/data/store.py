# SPDX-License-Identifier: Apache-2.0
"""A data set in the cache: a folder of plain arrays, written once, opened memory-mapped by any number of processes.

    <cache>/datasets/<key>/
        dataset.json        shapes, names, flags and the digest; no path of the machine
        patient_ids.json    the ids, by patient number
        images.npy          uint8 [N, C, size, size]
        labels.npy, patients.npy, split.npy, column-0.npy, …

The key is the SHA-256 of the source's content, of this code's `VERSION` and of the settings that change the result, so a second
call only opens. A folder appears under its name when it is complete, or not at all; two processes at once make it once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from common import study
from common.data.checks import checked, patient_count_problems
from common.data.cohort import Dataset
from common.data.resize import resize
from common.data.sources import RawTable, reader_for
from common.errors import DataError, StorageError
from common.files import locked, sync_folder

VERSION = 1
"""Part of every key: raise it whenever a change of the code changes what is stored."""

_NOT_STORED = {"test_fraction", "validation_fraction", "min_patients", "phantom"}
_log = logging.getLogger(__name__)

Arrays = dict[str, npt.NDArray[Any]]


class ArrayEntry(BaseModel):
    """One array file of the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    dtype: str
    shape: tuple[int, ...]


class Manifest(BaseModel):
    """`dataset.json`. `columns` maps a column's name to the name of its array."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    digest: str
    label_names: tuple[str, ...]
    natural_sites: str | None
    synthetic: bool
    source_size_pixels: int
    patient_count: int
    columns: dict[str, str]
    arrays: dict[str, ArrayEntry]


def materialise(data: study.Data, path: Path | None, cache: Path) -> Dataset:
    """Read, check, resize and store a data set unless that was done before, and open it.

    `path` is the file or folder of the source (None for the phantom). Raises DataError with all problems of the data, StorageError
    when the cache cannot be written.
    """
    dataset = open_dataset(stored_folder(data, path, cache))
    problems = patient_count_problems(len(dataset.patient_ids), data)
    if problems:
        raise DataError(problems)
    return dataset


def stored_folder(data: study.Data, path: Path | None, cache: Path) -> Path:
    """The folder of `materialise`, made if it is not there: what another process needs to open the same data set."""
    reader = reader_for(data.source)
    folder = cache / "datasets" / _key(data, reader.fingerprint(data, path))
    if folder.exists():
        return folder
    try:
        with locked(folder.with_name(folder.name + ".lock")):
            if not folder.exists():
                _write(folder, checked(reader.read(data, path), data), data)
    except OSError as error:
        raise StorageError(
            f"cannot write {folder}: {error.strerror or error}; check free space and permissions, or set WARDROUND_CACHE"
        ) from error
    return folder


def _key(data: study.Data, fingerprint: str) -> str:
    settings = data.model_dump(mode="json", exclude=_NOT_STORED)
    content = json.dumps([VERSION, fingerprint, settings], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def _write(folder: Path, table: RawTable, data: study.Data) -> None:
    """Write the folder beside its final place and rename it. The caller holds the lock, so an older part is a crash's."""
    for left_over in folder.parent.glob(f".{folder.name}.*.part"):
        shutil.rmtree(left_over)
    part = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.part")
    part.mkdir()
    try:
        _fill(part, table, data)
        sync_folder(part)
        part.replace(folder)
        sync_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _fill(part: Path, table: RawTable, data: study.Data) -> None:
    source_size = table.images.shape[1]
    if source_size < data.image_size:
        _log.warning("%s: images of %d pixels are enlarged to data.image_size %d", table.where, source_size, data.image_size)
    ids, patients = np.unique(np.asarray(table.patient_ids), return_inverse=True)
    columns = {name: f"column-{number}" for number, name in enumerate(sorted(table.columns))}
    arrays = _arrays(table, patients, data.image_size) | {columns[name]: values for name, values in table.columns.items()}
    facts: dict[str, Any] = {
        "version": VERSION,
        "label_names": data.labels,
        "natural_sites": table.natural_sites,
        "synthetic": table.synthetic,
        "source_size_pixels": source_size,
        "patient_count": len(ids),
        "columns": columns,
        "arrays": {name: _entry(name, array) for name, array in arrays.items()},
    }
    patient_ids = json.dumps(ids.tolist(), ensure_ascii=False)
    manifest = Manifest(digest=_digest(facts, patient_ids, arrays), **facts)
    for name, array in arrays.items():
        _write_array(part / f"{name}.npy", array)
    _write_text(part / "patient_ids.json", patient_ids)
    _write_text(part / "dataset.json", manifest.model_dump_json(indent=1))


def _arrays(table: RawTable, patients: npt.NDArray[Any], size: int) -> Arrays:
    images = resize(table.images, size)
    images = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)  # [N, C, size, size]
    arrays: Arrays = {"images": images, "labels": table.labels.astype(np.int64), "patients": patients.astype(np.int64)}
    if table.split is not None:
        arrays["split"] = table.split.astype(np.uint8)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _entry(name: str, array: npt.NDArray[Any]) -> dict[str, Any]:
    return {"file": f"{name}.npy", "dtype": array.dtype.str, "shape": array.shape}


def _digest(facts: dict[str, Any], patient_ids: str, arrays: Arrays) -> str:
    """SHA-256 of the facts, the ids and the bytes of all arrays."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode() + b"\0" + patient_ids.encode() + b"\0")
    for name in sorted(arrays):
        digest.update(np.ascontiguousarray(arrays[name]).view(np.uint8).data if arrays[name].size else b"")
    return digest.hexdigest()


def _write_array(path: Path, array: npt.NDArray[Any]) -> None:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def open_dataset(folder: Path) -> Dataset:
    """Open what `materialise` stored; images stay on disk, memory-mapped and read-only.

    Raises StorageError when a file is missing or does not have the size, type and shape that the manifest names.
    """
    try:
        manifest = _read_manifest(folder / "dataset.json")
        arrays = {name: _open_array(folder, name, entry) for name, entry in manifest.arrays.items()}
        ids = tuple(json.loads((folder / "patient_ids.json").read_text(encoding="utf-8")))
        if len(ids) != manifest.patient_count:
            raise ValueError(f"patient_ids.json has {len(ids)} ids, the manifest says {manifest.patient_count}")
        return _dataset(manifest, arrays, ids)
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"{folder}: the stored data set is damaged ({error}); delete this folder, it is made again") from error


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ValueError(f"{path.name} is not a manifest of this version") from error


def _open_array(folder: Path, name: str, entry: ArrayEntry) -> npt.NDArray[Any]:
    if Path(entry.file).name != entry.file:
        raise ValueError(f"{name}: the manifest names a file outside the folder")
    array: npt.NDArray[Any] = np.load(folder / entry.file, mmap_mode="r" if name == "images" else None, allow_pickle=False)
    if array.dtype.str != entry.dtype or array.shape != entry.shape:
        raise ValueError(f"{entry.file} is {array.dtype} {list(array.shape)}, the manifest says {entry.dtype} {list(entry.shape)}")
    return array


def _dataset(manifest: Manifest, arrays: Arrays, ids: tuple[str, ...]) -> Dataset:
    return Dataset(
        images=arrays["images"],
        labels=arrays["labels"],
        patients=arrays["patients"],
        patient_ids=ids,
        label_names=manifest.label_names,
        columns={name: arrays[array] for name, array in manifest.columns.items()},
        split=arrays.get("split"),
        natural_sites=manifest.natural_sites,
        synthetic=manifest.synthetic,
        digest=manifest.digest,
    )
