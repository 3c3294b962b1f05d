# SPDX-License-Identifier: Apache-2.0
"""The page of a cohort's check: one self-contained HTML file with thumbnails, mode 0600. It shows images of patients, so it stays here.

Examples of each finding come first, then a sample of all images, evenly spaced, for whoever looks for burned-in text and wrong windows.
"""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from client.cohorts.findings import Finding
from client.cohorts.layout import open_images
from client.cohorts.verdict import Verdict
from common.crypto.private_files import replace_private
from common.data.cohort_file import CohortFile

THUMBNAIL_PIXELS: Final = 112
SAMPLE_IMAGES: Final = 48
_TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Shown:
    """One thumbnail: the image's number, and a PNG as a data URI."""

    number: int
    uri: str


class Thumbnails:
    """Thumbnails of a cohort's images; none when the images cannot be opened or are none."""

    def __init__(self, images: npt.NDArray[Any] | None) -> None:
        self._images = images

    @property
    def count(self) -> int:
        """How many images there are."""
        return 0 if self._images is None else len(self._images)

    def of(self, numbers: Sequence[int]) -> list[Shown]:
        """The images with these numbers, as far as there are such."""
        return [
            Shown(number, _png_uri(self._images[number])) for number in numbers if self._images is not None and 0 <= number < self.count
        ]

    def pairs(self, finding: Finding) -> list[list[Shown]]:
        """The pairs of a finding."""
        return [self.of(pair) for pair in finding.pairs]

    def sample(self) -> list[Shown]:
        """Images evenly spaced over the whole cohort."""
        return self.of(np.unique(np.linspace(0, self.count - 1, min(SAMPLE_IMAGES, self.count)).astype(int)).tolist()) if self.count else []


def write_page(path: Path, folder: Path, verdict: Verdict) -> None:
    """Write the page of a verdict on the cohort in `folder`. Raises DataError, StorageError."""
    cohort = CohortFile.read(folder)
    images = open_images(folder, cohort) if cohort.images is not None and verdict.groups else None
    replace_private(path, page(folder.name, verdict, Thumbnails(images)).encode())


def page(name: str, verdict: Verdict, thumbnails: Thumbnails) -> str:
    """The page as text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(verdict.time))
    return environment.get_template("check.html").render(name=name, verdict=verdict, thumbnails=thumbnails, made=made)


def _png_uri(image: npt.NDArray[Any]) -> str:
    from PIL import Image

    picture = Image.fromarray(_eight_bits(image))
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _eight_bits(image: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """16 bits are stretched from the smallest to the largest value, for show only."""
    if image.dtype == np.uint8:
        return np.asarray(image)
    values = image.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    stretched: npt.NDArray[np.uint8] = np.rint((values - low) * (255 / max(high - low, 1.0))).astype(np.uint8)
    return stretched
