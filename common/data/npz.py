# SPDX-License-Identifier: Apache-2.0
"""Reader of any npz file with an array of images, one of labels and one of patient ids.

The names of the three arrays are in the study (`image_key`, `label_key`, `patient_key`). Every other one-dimensional array of the
same length becomes a column. Arrays of Python objects are never loaded: they are pickles, and a pickle can run code.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common import study
from common.data.sources import RawTable, file_sha256, required_path
from common.errors import DataError

Arrays = dict[str, npt.NDArray[Any]]


class NpzReader:
    """`data.source: npz`."""

    def fingerprint(self, data: study.Data, path: Path | None) -> str:
        """SHA-256 of the file."""
        return file_sha256(required_path(data.source, path))

    def read(self, data: study.Data, path: Path | None) -> RawTable:
        """Arrays of the file by the study's names. Raises DataError when one is missing or the file is damaged."""
        path = required_path(data.source, path)
        arrays = load_npz(path)
        _require(arrays, data, path.name)
        known = {data.image_key, data.label_key, data.patient_key}
        images = arrays[data.image_key]
        return RawTable(
            where=path.name,
            images=images,
            labels=arrays[data.label_key],
            patient_ids=patient_ids(arrays.get(data.patient_key), data, path.name),
            columns={k: v for k, v in sorted(arrays.items()) if k not in known and v.ndim == 1 and len(v) == len(images)},
        )


def load_npz(path: Path) -> Arrays:
    """All arrays of an npz but those of Python objects. Raises DataError when the file is not an intact npz."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        with np.load(path, allow_pickle=False) as stored:
            loaded = {name: _plain_array(stored, name) for name in names}
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError, EOFError) as error:
        raise DataError(f"{path.name}: not an intact npz file ({error}); copy it again or write it anew with numpy.savez") from error
    return {name: np.atleast_1d(array) for name, array in loaded.items() if array is not None}


def _plain_array(stored: Any, name: str) -> npt.NDArray[Any] | None:
    """The array, or None when it holds Python objects."""
    try:
        array: npt.NDArray[Any] = stored[name]
    except ValueError as error:
        if "allow_pickle" in str(error) or "Object arrays" in str(error):
            return None
        raise
    return array


def _require(arrays: Arrays, data: study.Data, where: str) -> None:
    """Raise DataError when images or labels are not among `arrays`, naming every one that is missing."""
    wanted = {"image_key": data.image_key, "label_key": data.label_key}
    found = ", ".join(sorted(arrays)) or "none"
    missing = [
        f"{where}: no plain array {name!r} (data.{key}); the file has: {found}. Name the right one in data.{key}; "
        "an array of Python objects, such as images of mixed sizes, does not count"
        for key, name in wanted.items()
        if name not in arrays
    ]
    if data.patient_key not in arrays and not data.one_image_one_patient:
        missing.append(no_patient_ids(f"{where}: no array {data.patient_key!r} (data.patient_key); the file has: {found}"))
    if missing:
        raise DataError(missing)


def no_patient_ids(found: str) -> str:
    """The message about missing patient ids: what was found, what it means for privacy, what to do."""
    return (
        f"{found}. Privacy is counted by patient, so each image needs a patient id. Give the ids, or declare "
        "data.one_image_one_patient: true. That says that no patient has two images; where it is not true, a patient "
        "with k images is protected about k times less than the report says"
    )


def patient_ids(ids: npt.NDArray[Any] | None, data: study.Data, where: str) -> npt.NDArray[Any] | None:
    """The ids to use: those given, or None if every image is declared a patient of its own.

    Raises DataError when the ids contradict the declaration.
    """
    if not data.one_image_one_patient:
        return ids
    if ids is not None and ids.ndim == 1 and len(np.unique(ids)) < len(ids):
        raise DataError(
            f"{where}: data.one_image_one_patient is declared, but array {data.patient_key!r} gives some patients several images; "
            "remove the declaration, the ids are used then"
        )
    return ids
