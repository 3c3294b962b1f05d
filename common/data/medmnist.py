# SPDX-License-Identifier: Apache-2.0
"""Reader of the MedMNIST layout: arrays `train_images`, `train_labels`, and the same for `val` and `test`.

The official split is kept. MedMNIST gives no patient ids, so a study has to declare `one_image_one_patient`; a file of the same
layout may bring them as `train_patient_id` and so on (`data.patient_key`). The source is a file, or the bare name of a data set
that the `medmnist` package (an extra) downloads.
Layout: Yang et al. 2023, MedMNIST v2, Scientific Data 10:41.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np

from common import study
from common.data.cohort import ByteArray, Split
from common.data.npz import Arrays, load_npz, no_patient_ids, patient_ids
from common.data.sources import RawTable, file_sha256, required_path
from common.errors import DataError

PREFIXES = {Split.TRAIN: "train", Split.VALIDATION: "val", Split.TEST: "test"}


class MedMnistReader:
    """`data.source: medmnist`."""

    def fingerprint(self, data: study.Data, path: Path | None) -> str:
        """SHA-256 of the file."""
        return file_sha256(_file(data, path))

    def read(self, data: study.Data, path: Path | None) -> RawTable:
        """The three parts one after the other. Raises DataError when an array is missing or the parts do not fit."""
        file = _file(data, path)
        arrays = load_npz(file)
        _check(arrays, data, file.name)
        parts = [prefix for prefix in PREFIXES.values() if f"{prefix}_images" in arrays]
        ids = [arrays[f"{prefix}_{data.patient_key}"] for prefix in parts if f"{prefix}_{data.patient_key}" in arrays]
        return RawTable(
            where=file.name,
            images=np.concatenate([arrays[f"{prefix}_images"] for prefix in parts]),
            labels=np.concatenate([arrays[f"{prefix}_labels"] for prefix in parts]),
            patient_ids=patient_ids(np.concatenate(ids) if ids else None, data, file.name),
            split=_split(arrays),
        )


def _split(arrays: Arrays) -> ByteArray:
    counts = {split: len(arrays.get(f"{prefix}_images", ())) for split, prefix in PREFIXES.items()}
    return np.repeat(np.array(list(counts), dtype=np.uint8), list(counts.values()))


def _check(arrays: Arrays, data: study.Data, where: str) -> None:
    """Raise DataError when the layout is not MedMNIST's."""
    problems = [
        f"{where}: no array {prefix}_{kind}; this is not the MedMNIST layout. Use data.source: npz and name the arrays"
        for prefix in ("train", "test")
        for kind in ("images", "labels")
        if f"{prefix}_{kind}" not in arrays
    ]
    present = [prefix for prefix in PREFIXES.values() if f"{prefix}_images" in arrays]
    for prefix in present:
        images, labels = arrays[f"{prefix}_images"], arrays.get(f"{prefix}_labels", np.empty(0))
        if len(images) != len(labels):
            problems.append(f"{where}: {len(images)} {prefix}_images but {len(labels)} {prefix}_labels; write the file anew")
    if len({arrays[f"{prefix}_images"].shape[1:] for prefix in present}) > 1:
        problems.append(f"{where}: train, val and test have images of mixed sizes; bring them to one size")
    with_ids = [prefix for prefix in present if f"{prefix}_{data.patient_key}" in arrays]
    if with_ids and with_ids != present:
        problems.append(f"{where}: patient ids in {', '.join(with_ids)} only; give them for all of {', '.join(present)}")
    if not with_ids and not data.one_image_one_patient:
        problems.append(no_patient_ids(f"{where}: the MedMNIST layout has no patient ids"))
    if problems:
        raise DataError(problems)


def _file(data: study.Data, path: Path | None) -> Path:
    """The npz itself: the path given, or where the `medmnist` package keeps the data set of that name."""
    if path is None or path.exists() or path.suffix or path.name != str(path):
        return required_path(data.source, path)
    return _by_name(path.name)


def _by_name(name: str) -> Path:
    """Download a data set with the `medmnist` package if it is not there yet, and return its file."""
    try:
        package = import_module("medmnist")
    except ModuleNotFoundError as error:
        raise DataError(
            f"{name}: there is no such file, and data sets are found by name only with the medmnist package; "
            'install it (pip install "wardround[medmnist]") or give the path of the npz file'
        ) from error
    if name not in package.INFO:
        raise DataError(f"{name}: MedMNIST has no data set of this name; it has {', '.join(sorted(package.INFO))}")
    try:
        dataset = getattr(package, package.INFO[name]["python_class"])(split="train", download=True)
    except RuntimeError as error:
        raise DataError(f"{name}: the medmnist package cannot download it; download the npz by hand and give its path") from error
    return Path(dataset.root) / f"{name}.npz"
