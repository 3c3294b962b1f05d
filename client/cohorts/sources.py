# SPDX-License-Identifier: Apache-2.0
"""Which files of a hospital become a cohort, and whose each is.

    patient-folders   DIR/<patient>/…: the first folder is the patient's id
    table             any folder, with a table that names each file and its patient
    dicom             any tree of DICOM files: the patient is in the header, unless the table says otherwise for a file
    nifti             volumes; the patient is the first folder, unless the table says otherwise
    npz               one file of arrays: images, patient ids, labels
    features          one CSV file, a line for each row of a table (no images)

What decides, in this order: the table's line for the file, the folder (patient-folders, nifti), the header. Every file of the folder is
taken, so whatever is no image is named among the refused.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from common.errors import DataError

Layout = Literal["patient-folders", "table", "dicom", "nifti", "npz", "features"]
LAYOUTS: Final[tuple[Layout, ...]] = get_args(Layout)
_LOOKED_AT: Final = 50
_NIFTI: Final = (".nii", ".nii.gz")


@dataclass(frozen=True)
class SourceFile:
    """A file below the folder of images. `name` is relative to it, with slashes."""

    name: str
    path: Path

    @property
    def folder(self) -> str | None:
        """The first folder of the name; None for a file that lies in the folder of images itself."""
        first, slash, _ = self.name.partition("/")
        return first if slash else None


def find_files(root: Path, leave_out: tuple[Path, ...] = ()) -> list[SourceFile]:
    """Every file below `root`, sorted by name; not those at or below `leave_out` (the table, the cohort itself). Raises DataError."""
    skipped = frozenset(str(path.resolve()) for path in leave_out)
    found = sorted(_walk(str(root.resolve()), "", skipped))
    if not found:
        raise DataError(f"{root}: holds no files; check --images")
    return [SourceFile(_as_text(name), root / name) for name in found]


def _as_text(name: str) -> str:
    """A name of the file system as text that can be written: bytes that are no UTF-8 are shown as such."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _walk(folder: str, prefix: str, skipped: frozenset[str]) -> Iterator[str]:
    """Names of files, relative to the first folder. A folder that cannot be read raises DataError: its patients would be missing."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.path in skipped:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    yield from _walk(entry.path, f"{prefix}{entry.name}/", skipped)
                else:
                    yield prefix + entry.name
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror or error}); check its permissions") from error


def layout_of(images: Path, *, has_paths: bool) -> Layout:
    """The layout that `auto` takes. `has_paths`: a table names the files. Raises DataError when it cannot be told."""
    if not images.exists():
        raise DataError(f"{images}: there is no such file or folder; check --images")
    if images.is_file():
        return _layout_of_file(images)
    files = find_files(images)
    if any(file.name.lower().endswith(_NIFTI) for file in files):
        return "nifti"
    if has_paths:
        return "table"
    if any(_is_dicom(file.path) for file in files[:_LOOKED_AT]):
        return "dicom"
    if any(file.folder is not None for file in files):
        return "patient-folders"
    raise DataError(
        f"{images}: a flat folder does not say whose its files are; give --labels FILE.csv with --path-column (the file) and "
        "--id-column (the patient), or put each patient's files into a folder of its own"
    )


def _layout_of_file(path: Path) -> Layout:
    by_suffix: dict[str, Layout] = {".npz": "npz", ".csv": "features"}
    if path.suffix.lower() not in by_suffix:
        raise DataError(f"{path}: is one file and neither .npz nor .csv; give the folder that holds the images")
    return by_suffix[path.suffix.lower()]


def check_layout(images: Path, layout: Layout) -> None:
    """Raise DataError when the layout wants a file and there is a folder, or the other way round."""
    if not images.exists():
        raise DataError(f"{images}: there is no such file or folder; check --images")
    if (layout in ("npz", "features")) != images.is_file():
        raise DataError(f"{images}: layout {layout} reads {'a file, this is a folder' if images.is_dir() else 'a folder, this is a file'}")


def _is_dicom(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False
