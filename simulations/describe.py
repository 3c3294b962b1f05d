# SPDX-License-Identifier: Apache-2.0
"""What is in a data set: numbers for the terminal, and a page with thumbnails to look at before training.

Exact counts and images are shown, so this belongs to whoever owns the data: a simulation, or a hospital's own eyes. Patient ids are
never shown.
"""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from common.data.cohort import ByteArray, Dataset, IntArray, Split
from common.files import write_atomic

THUMBNAILS_PER_CLASS = 12
THUMBNAIL_PIXELS = 128
MOST_VALUES = 20
MOST_BARS = 10


def describe(dataset: Dataset, split: ByteArray | None = None) -> dict[str, Any]:
    """Facts of a data set as plain JSON values.

    `split` uint8 [N] is what each image is for; without it the official split is described, if there is one.
    """
    split = dataset.split if split is None else split
    every = np.arange(len(dataset))
    return {
        "synthetic": dataset.synthetic,
        "patients": len(dataset.patient_ids),
        "images": len(dataset),
        **_shape(dataset),
        "images_per_patient": _images_per_patient(dataset),
        "classes": _classes(dataset, every),
        "splits": None if split is None else {part.name.lower(): _part(dataset, np.flatnonzero(split == part)) for part in Split},
        "columns": {name: _column(values) for name, values in dataset.columns.items()},
        "natural_sites": dataset.natural_sites,
        "remarks": list(dataset.remarks),
        "digest": dataset.digest,
    }


def _shape(dataset: Dataset) -> dict[str, Any]:
    """Size and channels of the images, or the number of features of a table."""
    if dataset.features is not None:
        return {"features": dataset.features.shape[1]}
    return {"image_size": list(dataset.images.shape[2:]), "channels": dataset.images.shape[1]}


def _part(dataset: Dataset, rows: IntArray) -> dict[str, Any]:
    return {"patients": len(np.unique(dataset.patients[rows])), "images": len(rows), "classes": _classes(dataset, rows)}


def _classes(dataset: Dataset, rows: IntArray) -> dict[str, dict[str, int]]:
    """Images of each class, and patients with at least one such image."""
    of_class = {name: rows[dataset.labels[rows] == number] for number, name in enumerate(dataset.label_names)}
    return {name: {"patients": len(np.unique(dataset.patients[own])), "images": len(own)} for name, own in of_class.items()}


def _images_per_patient(dataset: Dataset) -> dict[str, int]:
    """Number of images to number of patients; the last bar holds `MOST_BARS` and more."""
    counts = np.bincount(dataset.patients, minlength=len(dataset.patient_ids))
    bars = np.bincount(np.minimum(counts, MOST_BARS))[1:]
    return {f"{number}{'+' if number == MOST_BARS and counts.max() > MOST_BARS else ''}": int(bar) for number, bar in enumerate(bars, 1)}


def _column(values: Any) -> dict[str, Any]:
    """A column of numbers by its quartiles, one of words by its counts, one of very many words by how many they are."""
    if values.dtype.kind in "iuf" and len(np.unique(values)) > MOST_VALUES:
        known = values[np.isfinite(values)]
        low, middle, high = (float(number) for number in np.quantile(known, (0, 0.5, 1)))
        return {"kind": "number", "lowest": low, "median": middle, "highest": high, "missing": len(values) - len(known)}
    words, counts = np.unique(values, return_counts=True)
    if len(words) > MOST_VALUES:
        return {"kind": "text", "different": len(words)}
    return {"kind": "category", "counts": {str(word): int(count) for word, count in zip(words, counts, strict=True)}}


def thumbnail(image: ByteArray, size: int = THUMBNAIL_PIXELS) -> str:
    """A PNG of an image uint8 [C, H, W] as base64, with hard pixels when it is enlarged."""
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)))
    factor = max(1, size // picture.width)
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((size, size))
    content = io.BytesIO()
    picture.save(content, format="PNG", optimize=True)
    return base64.b64encode(content.getvalue()).decode("ascii")


def example_rows(dataset: Dataset, label: int, count: int = THUMBNAILS_PER_CLASS) -> IntArray:
    """Rows of a class to show: one image a patient, spread evenly over the patients."""
    rows = np.flatnonzero(dataset.labels == label)
    firsts = rows[np.unique(dataset.patients[rows], return_index=True)[1]]
    chosen = np.linspace(0, max(len(firsts) - 1, 0), min(count, len(firsts))).astype(np.int64)
    return np.asarray(firsts[chosen], dtype=np.int64)


def write_page(dataset: Dataset, path: Path, title: str = "Data set", split: ByteArray | None = None) -> None:
    """Write a page without any outside reference: numbers, bars and thumbnails by class. Raises StorageError."""
    from jinja2 import Environment, StrictUndefined

    template = files("simulations").joinpath("templates/describe.html").read_text(encoding="utf-8")
    examples = {
        name: [{"png": thumbnail(dataset.images[row]), "row": int(row)} for row in example_rows(dataset, number)]
        for number, name in enumerate(dataset.label_names)
        if dataset.features is None
    }
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    write_atomic(path, environment.from_string(template).render(title=title, facts=describe(dataset, split), examples=examples))
