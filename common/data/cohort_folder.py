# SPDX-License-Identifier: Apache-2.0
"""Reader of a cohort that `wardround-client cohort build` made (`common.data.cohort_file` says what is in its folder).

Images stay on disk and are read block by block; 16 bits become 8 by rounding on full scale. `data.label_column` names the label; the listed
columns become columns of the data set (or features, where the study says `data.kind: tabular`), and a column `split` the official split.
Works at a hospital and in a simulation alike: nothing here needs the site's key.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from common import study
from common.data.blocks import LazyImages
from common.data.cohort import ByteArray
from common.data.cohort_file import COHORT_FILE, IMAGES, MISSING, SPLIT, CohortFile, Manifest, open_images, read_manifest
from common.data.csv_table import labels_of, split_of
from common.data.resize import to_bytes
from common.data.sources import RawTable, file_sha256, no_images, required_path
from common.data.table_features import read_columns, stacked
from common.errors import DataError

_MOST_WHOLE = 2**53


class CohortReader:
    """`data.source: cohort`."""

    def fingerprint(self, data: study.Data, path: Path | None) -> str:
        """Digest of `cohort.json`, which names the other files by digest. The manifest is compared with its own, the images by size."""
        folder = _folder(data, path)
        cohort = CohortFile.read(folder)
        problems = _kind_problems(cohort, data, folder)
        if file_sha256(folder / cohort.manifest) != cohort.manifest_sha256:
            problems.append(f"{folder / cohort.manifest}: was changed after the cohort was built; build the cohort again")
        if problems:
            raise DataError(problems)
        if cohort.images is not None:
            open_images(folder, cohort)
        return cohort.digest

    def read(self, data: study.Data, path: Path | None) -> RawTable:
        """The rows of the manifest. Every file is compared with its digest first. Raises DataError with what is wrong."""
        folder = _folder(data, path)
        cohort = CohortFile.read(folder)
        manifest = read_manifest(folder, cohort)
        problems = _kind_problems(cohort, data, folder)
        if data.label_column not in cohort.label_columns:
            problems.append(
                f"{folder.name}: no label column {data.label_column!r} (data.label_column); the cohort has: "
                f"{', '.join(cohort.label_columns) or 'none'}; name the right one, or build the cohort with --label-column"
            )
        if problems:
            raise DataError(problems)
        texts = {name: np.array(cells, dtype=np.str_) for name, cells in manifest.cells.items()}
        table = _image_table if cohort.images is not None else _feature_table
        return table(folder, cohort, manifest, texts, data)


def _folder(data: study.Data, path: Path | None) -> Path:
    folder = required_path(data.source, path)
    if not folder.is_dir():
        raise DataError(f"{folder}: is a file, data.source: cohort reads the folder that `wardround-client cohort build` made")
    return folder


def _kind_problems(cohort: CohortFile, data: study.Data, folder: Path) -> list[str]:
    if cohort.kind == data.kind:
        return []
    return [f"{folder.name}: is a cohort of kind {cohort.kind}, the study says data.kind: {data.kind}; take another cohort or study"]


def _image_table(
    folder: Path, cohort: CohortFile, manifest: Manifest, texts: Mapping[str, npt.NDArray[np.str_]], data: study.Data
) -> RawTable:
    images, entry, rows = open_images(folder, cohort), cohort.images, manifest.images
    if entry is None or rows is None or file_sha256(folder / IMAGES) != entry.sha256:
        raise DataError(f"{folder / IMAGES}: is not what {COHORT_FILE} says; build the cohort again")
    return RawTable(
        where=folder.name,
        images=LazyImages(images, rows, (to_bytes,)),
        labels=labels_of(texts[data.label_column]),
        patient_ids=np.array(manifest.patients, dtype=np.str_),
        split=_split(cohort, texts),
        columns={name: typed(texts[name]) for name in cohort.columns},
        remarks=cohort.remarks,
    )


def _feature_table(
    folder: Path, cohort: CohortFile, manifest: Manifest, texts: Mapping[str, npt.NDArray[np.str_]], data: study.Data
) -> RawTable:
    read = read_columns({name: texts[name] for name in cohort.columns}, data)
    return RawTable(
        where=folder.name,
        images=no_images(len(manifest)),
        labels=labels_of(texts[data.label_column]),
        patient_ids=np.array(manifest.patients, dtype=np.str_),
        split=_split(cohort, texts),
        columns={name: typed(texts[name]) for name in cohort.columns} | {column.name: column.values for column in read},
        features=stacked(read),
        remarks=cohort.remarks,
    )


def _split(cohort: CohortFile, texts: Mapping[str, npt.NDArray[np.str_]]) -> ByteArray | None:
    return split_of(texts[SPLIT]) if cohort.has_split else None


def typed(cells: npt.NDArray[np.str_]) -> npt.NDArray[Any]:
    """A column as whole numbers, as numbers (float64, NaN where a cell is missing) or as text, whichever holds for all its cells."""
    if np.isin(cells, list(MISSING)).all():
        return cells
    try:
        numbers = np.array([float("nan") if cell in MISSING else float(cell) for cell in cells.tolist()])
    except ValueError:
        return cells
    whole = np.isfinite(numbers).all() and (numbers == np.round(numbers)).all() and (np.abs(numbers) < _MOST_WHOLE).all()
    return numbers.astype(np.int64) if whole else numbers
