# SPDX-License-Identifier: Apache-2.0
"""Reader of a folder with one sub-folder for each class, holding PNG or JPEG files of 8 bits.

The names of the sub-folders are the labels. `patients.csv` beside them gives each file its patient: columns `file` (relative, such
as `opacity/a.png`) and `patient_id`, and any further columns (age, sex, scanner) become columns of the data set. Images are
reduced to the study's size one at a time, so memory does not grow with their original size.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common import study
from common.data.cohort import ByteArray
from common.data.npz import no_patient_ids, patient_ids
from common.data.resize import resize, size_problem
from common.data.sources import Column, RawTable, file_sha256, required_path
from common.errors import DataError

SUFFIXES = {".png", ".jpg", ".jpeg"}
TABLE = "patients.csv"
_GREY_MODES = {"1", "L"}
_COLOUR_MODES = {"RGB", "RGBA", "P", "LA", "CMYK", "YCbCr"}
_MOST_NAMED = 5


class FolderReader:
    """`data.source: folder`."""

    def fingerprint(self, data: study.Data, path: Path | None) -> str:
        """SHA-256 over the names and contents of all images and of `patients.csv`."""
        root = required_path(data.source, path)
        table = [root / TABLE] if (root / TABLE).is_file() else []
        lines = [f"{file_sha256(file)} {file.relative_to(root).as_posix()}\n" for file in [*table, *_image_files(root)]]
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def read(self, data: study.Data, path: Path | None) -> RawTable:
        """All images, in the order of their names. Raises DataError with every unreadable file, or when sizes are mixed."""
        root = required_path(data.source, path)
        files = _image_files(root)
        names = [file.relative_to(root).as_posix() for file in files]
        columns, problems = _patient_table(root, names, data)
        images, image_problems = _read_images(files, names, data.image_size)
        if problems or image_problems:
            raise DataError([f"{root.name}: {problem}" for problem in problems + image_problems])
        ids = columns.pop("patient_id", None)
        return RawTable(
            where=root.name,
            images=images,
            labels=np.array([file.parent.name for file in files]),
            patient_ids=patient_ids(ids, data, f"{root.name}/{TABLE}"),
            columns=columns,
        )


def _image_files(root: Path) -> list[Path]:
    """The images one level below `root`, sorted. Raises DataError when there are none."""
    files = [file for file in root.glob("*/*") if file.suffix.lower() in SUFFIXES and file.is_file()]
    if not files:
        raise DataError(f"{root}: no PNG or JPEG files in its sub-folders; it needs one sub-folder for each class, named like the label")
    return sorted(files)


def _some(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _read_images(files: list[Path], names: list[str], size: int) -> tuple[ByteArray, list[str]]:
    """uint8 [N, size, size(, 3)] and the problems: what cannot be decoded, and sizes that are mixed or do not fit."""
    shapes, problems = _read_headers(files, names)
    if len(shapes) > 1:
        sizes = _some([f"{height} x {width}" for height, width in sorted(shapes)])
        problems.append(f"images of mixed sizes ({sizes} pixels); bring them to one size")
    problems += [text for text in (size_problem(*shape, size) for shape in shapes) if text]
    images = [] if problems else [_decode(file, size) for file in files]
    broken = [name for name, image in zip(names, images, strict=False) if image is None]
    if broken:
        problems.append(f"cannot be decoded: {_some(broken)}; copy them again or take them out")
    if problems:
        return np.empty((0, size, size), np.uint8), problems
    return _stack([image for image in images if image is not None]), []


def _read_headers(files: list[Path], names: list[str]) -> tuple[set[tuple[int, int]], list[str]]:
    """Heights and widths that occur, and the files that are no images or have more than 8 bits."""
    from PIL import Image

    shapes, unreadable, deep = set(), [], []
    for file, name in zip(files, names, strict=True):
        try:
            with Image.open(file) as image:
                shapes.add((image.height, image.width))
                if image.mode not in _GREY_MODES | _COLOUR_MODES:
                    deep.append(name)
        except (OSError, ValueError, SyntaxError):
            unreadable.append(name)
    problems = [f"not an image or damaged: {_some(unreadable)}; copy them again or take them out"] if unreadable else []
    problems += [f"more than 8 bits for each pixel: {_some(deep)}; convert them to 8 bits with a window of your choice"] if deep else []
    return shapes, problems


def _decode(file: Path, size: int) -> ByteArray | None:
    """Pixels at the study's size, [size, size] or [size, size, 3]; None when the file is damaged."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            pixels = np.asarray(image.convert("L" if image.mode in _GREY_MODES else "RGB"))
    except (OSError, ValueError, SyntaxError):
        return None
    reduced: ByteArray = resize(pixels[None], size)[0]
    return reduced


def _stack(images: list[ByteArray]) -> ByteArray:
    """One array; grey images are repeated in three channels when others are colour."""
    if any(image.ndim == 3 for image in images):
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2) for image in images]
    return np.stack(images)


def _patient_table(root: Path, names: list[str], data: study.Data) -> tuple[dict[str, Column], list[str]]:
    """Columns of `patients.csv` in the order of `names`, and the problems. No table is fine if each image is a patient."""
    path = root / TABLE
    if not path.is_file():
        return {}, [] if data.one_image_one_patient else [no_patient_ids(f"no {TABLE}")]
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file, restval="", restkey=""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        return {}, [f"{TABLE} cannot be read ({error}); write it as UTF-8 text with commas"]
    absent = {"file", "patient_id"} - set(rows[0] if rows else ())
    if absent:
        return {}, [f"{TABLE} has no column {' and no column '.join(sorted(absent))}; its first line names the columns"]
    return _columns({row["file"]: row for row in rows}, rows, names)


def _columns(by_file: dict[str, dict[str, str]], rows: list[dict[str, str]], names: list[str]) -> tuple[dict[str, Column], list[str]]:
    """The table's columns for each of `names`, after checking that files and rows belong together one to one."""
    known = set(names)
    without_row = [name for name in names if name not in by_file]
    without_file = [name for name in by_file if name not in known]
    problems = [f"{TABLE} has no row for {_some(without_row)}; add them"] if without_row else []
    problems += [f"{TABLE} names files that are not there: {_some(without_file)}; correct or remove the rows"] if without_file else []
    if len(by_file) < len(rows):
        problems.append(f"{TABLE} names a file twice; keep one row for each file")
    if problems:
        return {}, problems
    keys = [key for key in rows[0] if key and key != "file"]
    return {key: _typed([by_file[name][key] for name in names], is_id=key == "patient_id") for key in keys}, []


def _typed(values: list[str], is_id: bool) -> Column:
    """Whole numbers, numbers (an empty cell is NaN) or text, whichever holds for all of `values`; ids stay text."""
    if not is_id:
        for convert, dtype in ((int, np.int64), (lambda cell: float(cell or "nan"), np.float64)):
            try:
                return np.array([convert(value) for value in values], dtype=dtype)
            except (ValueError, OverflowError):
                continue
    return np.array(values)
