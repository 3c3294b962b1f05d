# SPDX-License-Identifier: Apache-2.0
"""One npz file as the source of a cohort: an array of images uint8 or uint16 [N, H, W] or [N, H, W, 3], one of patient ids, and others.

The arrays are named like the columns of a table: `--id-column` (default patient_id), `--label-column`, `--column`, `--split-column`. Each
image is a source of its own, `chest.npz[17]`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from client.cohorts.ingest import NOBODY, Ingested, PixelSettings, SmallImage, refusal, refused_record
from client.cohorts.pixels import stored_pixels
from client.cohorts.records import FileRecord
from client.cohorts.sources import SourceFile
from client.cohorts.tables import LabelTable, Line, Listed, entering_problems, with_split
from client.pseudonyms import Pseudonyms
from common.data.decode import Decoded, Facts
from common.data.npz import Arrays, load_npz
from common.errors import DataError

DEFAULT_IMAGES: Final = "images"
DEFAULT_IDENTIFIER: Final = "patient_id"


@dataclass(frozen=True)
class NpzSource:
    """An opened npz file."""

    path: Path
    images: npt.NDArray[Any]
    arrays: Arrays
    listed: Listed

    @classmethod
    def open(cls, path: Path, listed: Listed) -> NpzSource:
        """Read the arrays. Raises DataError with every one that is missing or has not one entry for each image."""
        listed = replace(listed, identifier=listed.identifier or DEFAULT_IDENTIFIER)
        arrays = load_npz(path)
        images = arrays.get(DEFAULT_IMAGES)
        problems = [] if images is not None else [f"{path.name}: has no array {DEFAULT_IMAGES!r}; it has: {', '.join(sorted(arrays))}"]
        if images is not None and (images.dtype not in (np.uint8, np.uint16) or images.ndim not in (3, 4)):
            problems.append(f"{path.name}: images are {images.dtype} {list(images.shape)}; store uint8 or uint16 [N, H, W] or [N, H, W, 3]")
        for name in (listed.identifier, *listed.entering):
            array = arrays.get(str(name))
            if array is None or array.ndim != 1 or (images is not None and len(array) != len(images)):
                problems.append(f"{path.name}: has no array {name!r} with one entry for each image; it has: {', '.join(sorted(arrays))}")
        if problems or images is None:
            raise DataError(problems)
        return cls(path, images, arrays, listed)

    def files(self) -> list[SourceFile]:
        """A source for each image."""
        return [SourceFile(self._name(row), self.path) for row in range(len(self.images))]

    def table(self, pseudonyms: Pseudonyms) -> LabelTable:
        """Whose each image is, and its cells. Raises DataError for columns that must not enter."""
        table = LabelTable(self.path.name, self.listed)
        columns = [_text(self.arrays[name]) for name in self.listed.entering]
        cells = list(zip(*columns, strict=True)) if columns else [()] * len(self.images)
        problems = entering_problems(self.listed, cells, self.path.name)
        if problems:
            raise DataError(problems)
        for row, identifier in enumerate(_text(self.arrays[str(self.listed.identifier)])):
            patient = pseudonyms.of(identifier) if identifier else None
            table.by_file[self._name(row)] = with_split(Line(row, patient, self._name(row), cells[row]), self.listed)
        return table

    def ingest(self, files: Sequence[SourceFile], settings: PixelSettings) -> Generator[tuple[SourceFile, Ingested], None, None]:
        """Each image made small."""
        rows = {self._name(row): row for row in range(len(self.images))}
        for source in files:
            yield source, self._one(source.name, self.images[rows[source.name]], settings)

    def _name(self, row: int) -> str:
        return f"{self.path.name}[{row}]"

    def _one(self, name: str, image: npt.NDArray[Any], settings: PixelSettings) -> Ingested:
        colour = image.ndim == 3 and image.shape[-1] == 3
        plain = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
        if (plain.ndim == 3 and not colour) or 0 in plain.shape:
            return Ingested(refused=refusal(name, f"has shape {list(image.shape)}; an image is [H, W] or [H, W, 3]"))
        facts = Facts(plain.shape[0], plain.shape[1], 8 * image.dtype.itemsize, "RGB" if colour else "MONOCHROME2")
        decoded = Decoded(plain, 0, facts)
        record = FileRecord.of(name, "", 0, NOBODY, decoded)
        if decoded.constant:
            record = refused_record(record, "all its pixels have one value, so it shows nothing; take it out")
        try:
            return Ingested((SmallImage(stored_pixels(plain, settings.size_pixels, settings.bits), None, record),))
        except DataError as error:
            return Ingested(refused=refusal(name, str(error)))


def _text(array: npt.NDArray[Any]) -> list[str]:
    """Each entry as a cell of a table; NaN is an empty one."""
    return ["" if isinstance(value, float) and value != value else str(value).strip() for value in array.tolist()]
