# SPDX-License-Identifier: Apache-2.0
"""A data set in the cache: a folder of plain arrays, written once, opened memory-mapped by any number of processes.

    <cache>/datasets/<key>/
        dataset.json        shapes, names, flags, the SHA-256 of each file and of all of it; no path of the machine
        patient_ids.json    the ids, by patient number
        images.npy          uint8 [N, C, size, size]; of a table features.npy instead, float32 [N, F]
        labels.npy, patients.npy, split.npy, column-0.npy, …

The key is the SHA-256 of the source's content, of this code's `VERSION` and of the settings that change the result, so a second
call only opens. A folder appears under its name when it is complete, or not at all; two processes at once make it once.

What is opened is checked first: sizes, headers and the SHA-256 of every file, but of `images.npy` only while it is small enough for that
to take a fraction of a second (`MAX_HASHED_BYTES`; 5,000 images of 64 x 64 are 20 MB). Of a larger one an edited pixel is not seen. Where
the source is at hand, a damaged folder is made again; elsewhere it is refused.
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
from common.data.blocks import Images, blocks
from common.data.checks import checked, patient_count_problems
from common.data.cohort import Dataset
from common.data.resize import resize
from common.data.sources import RawTable, reader_for
from common.errors import DataError, StorageError
from common.files import locked, sync_folder

VERSION = 2
"""Part of every key: raise it whenever a change of the code changes what is stored."""

MAX_HASHED_BYTES = 256_000_000
"""Largest `images.npy` that is read in full each time it is opened."""

_NOT_STORED = {"test_fraction", "validation_fraction", "min_patients", "phantom"}
_log = logging.getLogger(__name__)

Arrays = dict[str, npt.NDArray[Any]]


class ArrayEntry(BaseModel):
    """One array file of the folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    file: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int
    sha256: str


class Manifest(BaseModel):
    """`dataset.json`. `columns` maps a column's name to the name of its array.

    `digest` is the SHA-256 of everything else in here as canonical JSON, and so, through the digests of the files, of the whole data set.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    digest: str
    label_names: tuple[str, ...]
    natural_sites: str | None
    synthetic: bool
    source_size_pixels: int
    patient_count: int
    patient_ids_sha256: str
    columns: dict[str, str]
    arrays: dict[str, ArrayEntry]
    remarks: tuple[str, ...] = ()

    def digest_of_content(self) -> str:
        """What `digest` has to be."""
        facts = json.dumps(self.model_dump(mode="json", exclude={"digest"}), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(facts.encode()).hexdigest()


def materialise(data: study.Data, path: Path | None, cache: Path) -> Dataset:
    """Read, check, resize and store a data set unless that was done before, and open it.

    `path` is the file or folder of the source (None for the phantom). Raises DataError with all problems of the data, StorageError
    when the cache cannot be written.
    """
    folder = stored_folder(data, path, cache)
    try:
        dataset = open_dataset(folder)
    except StorageError as error:
        _log.warning("%s; making it again", error)
        dataset = open_dataset(_made_again(folder, data, path))
    problems = patient_count_problems(len(dataset.patient_ids), data)
    if problems:
        raise DataError(problems)
    return dataset


def _made_again(folder: Path, data: study.Data, path: Path | None) -> Path:
    """Write a damaged folder anew from its source. Processes that have the old files open keep them."""
    reader = reader_for(data.source)
    table = checked(reader.read(data, path), data)
    try:
        with locked(folder.with_name(folder.name + ".lock")):
            shutil.rmtree(folder, ignore_errors=True)
            _write(folder, table, data)
    except OSError as error:
        raise StorageError(f"cannot write {folder}: {error.strerror or error}; check free space and permissions") from error
    return folder


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
    source_size, remarks = table.images.shape[1], table.remarks
    if table.features is None and source_size < data.image_size:
        remarks += (f"images of {source_size} pixels are enlarged to data.image_size {data.image_size}; they show no more detail by that",)
    ids, patients = np.unique(np.asarray(table.patient_ids), return_inverse=True)
    columns = {name: f"column-{number}" for number, name in enumerate(sorted(table.columns))}
    arrays = _arrays(table, patients) | {columns[name]: values for name, values in table.columns.items()}
    images = {} if table.features is not None else {"images": _write_images(part / "images.npy", table.images, data)}
    _write_text(part / "patient_ids.json", json.dumps(ids.tolist(), ensure_ascii=False))
    manifest = Manifest(
        version=VERSION,
        digest="",
        label_names=data.labels,
        natural_sites=table.natural_sites,
        synthetic=table.synthetic,
        source_size_pixels=source_size,
        patient_count=len(ids),
        patient_ids_sha256=_file_digest(part / "patient_ids.json"),
        columns=columns,
        arrays=images | {name: _write_array(part / f"{name}.npy", array) for name, array in arrays.items()},
        remarks=remarks,
    )
    manifest = manifest.model_copy(update={"digest": manifest.digest_of_content()})
    _write_text(part / "dataset.json", manifest.model_dump_json(indent=1))


def _arrays(table: RawTable, patients: npt.NDArray[Any]) -> Arrays:
    """What is stored beside the images."""
    arrays: Arrays = {"labels": table.labels.astype(np.int64), "patients": patients.astype(np.int64)}
    if table.features is not None:
        arrays["features"] = table.features
    if table.split is not None:
        arrays["split"] = table.split.astype(np.uint8)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_array(path: Path, array: npt.NDArray[Any]) -> ArrayEntry:
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())
        size_bytes = file.tell()
    return ArrayEntry(file=path.name, dtype=array.dtype.str, shape=array.shape, size_bytes=size_bytes, sha256=_file_digest(path))


def _write_images(path: Path, images: Images, data: study.Data) -> ArrayEntry:
    """Write uint8 [N, C, size, size], resized block by block: memory does not grow with the number of images."""
    dtype, shape = np.dtype(np.uint8), (len(images), data.channels, data.image_size, data.image_size)
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": dtype.str, "fortran_order": False, "shape": shape})
        for block in blocks(images):
            small = resize(block, data.image_size)
            file.write(np.ascontiguousarray(small[:, None] if small.ndim == 3 else small.transpose(0, 3, 1, 2)).tobytes())
        file.flush()
        os.fsync(file.fileno())
        size_bytes = file.tell()
    return ArrayEntry(file=path.name, dtype=dtype.str, shape=shape, size_bytes=size_bytes, sha256=_file_digest(path))


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def open_dataset(folder: Path) -> Dataset:
    """Open what `materialise` stored; images stay on disk, memory-mapped and read-only.

    Raises StorageError when a file is missing, torn, or not what was written (see above for what is checked).
    """
    try:
        manifest = _read_manifest(folder / "dataset.json")
        arrays = {name: _open_array(folder, name, entry) for name, entry in manifest.arrays.items()}
        if _file_digest(folder / "patient_ids.json") != manifest.patient_ids_sha256:
            raise ValueError("patient_ids.json is not what was written")
        ids = tuple(json.loads((folder / "patient_ids.json").read_text(encoding="utf-8")))
        if len(ids) != manifest.patient_count:
            raise ValueError(f"patient_ids.json has {len(ids)} ids, the manifest says {manifest.patient_count}")
        return _dataset(manifest, arrays, ids)
    except (OSError, ValueError, KeyError) as error:
        raise StorageError(f"{folder}: the stored data set is damaged ({error}); delete this folder, it is made again") from error


def _read_manifest(path: Path) -> Manifest:
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise ValueError(f"{path.name} is not a manifest of this version") from error
    if manifest.digest != manifest.digest_of_content():
        raise ValueError(f"{path.name} was changed after it was written")
    return manifest


def _open_array(folder: Path, name: str, entry: ArrayEntry) -> npt.NDArray[Any]:
    if Path(entry.file).name != entry.file:
        raise ValueError(f"{name}: the manifest names a file outside the folder")
    _check_bytes(folder / entry.file, entry)
    array: npt.NDArray[Any] = np.load(folder / entry.file, mmap_mode="r" if name in ("images", "features") else None, allow_pickle=False)
    if array.dtype.str != entry.dtype or array.shape != entry.shape or not array.flags.c_contiguous:
        raise ValueError(f"{entry.file} is {array.dtype} {list(array.shape)}, the manifest says {entry.dtype} {list(entry.shape)}")
    return array


def _check_bytes(path: Path, entry: ArrayEntry) -> None:
    """Raises ValueError when the file is not the one that was written."""
    size_bytes = path.stat().st_size
    if size_bytes != entry.size_bytes:
        raise ValueError(f"{entry.file} has {size_bytes} bytes, {entry.size_bytes} were written")
    if size_bytes <= MAX_HASHED_BYTES and _file_digest(path) != entry.sha256:
        raise ValueError(f"{entry.file} is not what was written")


def _dataset(manifest: Manifest, arrays: Arrays, ids: tuple[str, ...]) -> Dataset:
    return Dataset(
        images=arrays["images"] if "images" in arrays else np.empty((len(arrays["labels"]), 0, 0, 0), np.uint8),
        labels=arrays["labels"],
        patients=arrays["patients"],
        patient_ids=ids,
        label_names=manifest.label_names,
        columns={name: arrays[array] for name, array in manifest.columns.items()},
        split=arrays.get("split"),
        natural_sites=manifest.natural_sites,
        synthetic=manifest.synthetic,
        digest=manifest.digest,
        remarks=manifest.remarks,
        features=arrays.get("features"),
    )
