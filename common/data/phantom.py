# SPDX-License-Identifier: Apache-2.0
"""Synthetic chest radiographs: what a study runs on when no real data is given.

Each patient has one scanner, an age, a sex, and 1 to 6 images. An image is labelled 1 (opacity) when a soft density was put inside a
lung. Densities of the same kind lie outside the lungs in both classes, and exposure and lung haze vary more than a density weighs,
so mean brightness tells little and a model has to look inside the lungs. Each scanner has its own gain, contrast, blur and noise.

The images are synthetic and carry that flag wherever they are shown. The same settings and code version give the same bytes: the
generator is seeded by `SEED`, the number of patients and of scanners, never by a study's seed. Nothing about it is private.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt

from common import study
from common.data.cohort import IntArray
from common.data.phantom_anatomy import IMAGE_RANGES, LUNG_CENTRE_X, LUNG_CENTRE_Y, PATIENT_RANGES, Floats, draw
from common.data.sources import Column, RawTable
from common.errors import DataError

VERSION = 2
"""Part of the fingerprint: raise it whenever a change of the code changes a pixel."""

SEED = 20_240_229
MOST_IMAGES = 6
PREVALENCE = 0.45
SHOWN_WHEN_ILL = 0.85
MOST_BLOBS = 3
RADIUS = (0.13, 0.24)
STRENGTH = (0.30, 0.60)
WAVE = (0.22, 0.30)
_CHUNK_PIXELS = 1 << 18


class PhantomReader:
    """`data.source: phantom`."""

    def fingerprint(self, data: study.Data, path: Path | None) -> str:
        """SHA-256 of the settings and of the version of this code."""
        _refuse(data, path)
        content = json.dumps([VERSION, data.phantom.model_dump(), data.image_size], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

    def read(self, data: study.Data, path: Path | None) -> RawTable:
        """Generate patients, then their images. Raises DataError when a path was given or there are not two labels."""
        _refuse(data, path)
        people = np.random.default_rng([SEED, data.phantom.patients, data.phantom.scanners])
        patients = _patients(people, data.phantom)
        owner = np.repeat(np.arange(data.phantom.patients), patients["images"])
        labels = (people.random(len(owner)) < SHOWN_WHEN_ILL) & patients["ill"][owner]
        p = _parameters(people, patients, owner)
        images = _images(people, data.image_size, p, _blobs(people, p, labels), patients["scanner"][owner], data.phantom.scanners)
        return RawTable(
            where="phantom",
            images=images,
            labels=labels.astype(np.int64) if data.label_values is None else np.array(data.label_values)[labels.astype(np.int64)],
            patient_ids=np.array([f"phantom-{number + 1:06d}" for number in owner]),
            columns={"age": patients["age"][owner], "sex": patients["sex"][owner], "scanner": _scanner_names(patients["scanner"][owner])},
            natural_sites="scanner",
            synthetic=True,
        )


def _refuse(data: study.Data, path: Path | None) -> None:
    """Raise DataError for settings that have no meaning for generated images."""
    problems = []
    if path is not None:
        problems.append(
            "data.source: phantom generates its images, yet a data path was given; "
            "leave it out, or set data.source: npz, medmnist or folder"
        )
    if len(data.labels) != 2:
        problems.append(f"data.labels: phantom images have two classes, not {len(data.labels)}; name two labels")
    if data.phantom.scanners > data.phantom.patients:
        problems.append("data.phantom.scanners: more scanners than patients; lower it or raise data.phantom.patients")
    if problems:
        raise DataError(problems)


def _scanner_names(scanner: IntArray) -> Column:
    return np.array([f"scanner-{number + 1}" for number in scanner])


def _patients(rng: np.random.Generator, settings: study.Phantom) -> dict[str, Column]:
    """Facts of each patient, [P] by name. Patients are dealt evenly to the scanners, in random order."""
    count = settings.patients
    scanner = rng.permutation(np.arange(count) % settings.scanners)
    facts: dict[str, Column] = {
        "scanner": scanner,
        "ill": rng.random(count) < PREVALENCE,
        "images": rng.choice(np.arange(1, MOST_IMAGES + 1), size=count, p=[0.14, 0.22, 0.22, 0.18, 0.14, 0.10]),
        "age": np.clip(rng.normal(58, 17, count), 18, 95).astype(np.int64),
        "sex": np.where(rng.random(count) < 0.5, "female", "male"),
    }
    return facts | {name: rng.uniform(low, high, count).astype(np.float32) for name, (low, high) in PATIENT_RANGES.items()}


def _parameters(rng: np.random.Generator, patients: dict[str, Column], owner: IntArray) -> dict[str, Floats]:
    """Anatomy and position of each image, [N] by name. Age widens the heart; sex decides on breast shadows."""
    of_patient = {name: patients[name][owner] for name in PATIENT_RANGES}
    of_image = {name: rng.uniform(low, high, len(owner)).astype(np.float32) for name, (low, high) in IMAGE_RANGES.items()}
    age = patients["age"][owner].astype(np.float32)
    breast = (patients["sex"][owner] == "female").astype(np.float32)
    return of_patient | of_image | {"breast": breast, "heart_width": of_patient["heart_width"] + (age - 58) * np.float32(0.0008)}


def _blobs(rng: np.random.Generator, p: dict[str, Floats], labels: npt.NDArray[np.bool_]) -> Floats:
    """Densities [N, 3, 7] as `draw` wants them: one or two in the lungs of a labelled image, up to two elsewhere in any image."""
    count = len(labels)
    inside_x, inside_y = _inside_lungs(rng, p, (count, MOST_BLOBS))
    outside_x, outside_y = _outside_lungs(rng, (count, MOST_BLOBS))
    radius = rng.uniform(*RADIUS, (count, MOST_BLOBS))
    strength = rng.uniform(*STRENGTH, (count, MOST_BLOBS))
    second = rng.random(count) < 0.35
    inside = np.stack([labels, labels & second, np.zeros_like(labels)], axis=1).astype(bool)
    shown = inside | (rng.random((count, MOST_BLOBS)) < [0.0, 0.25, 0.45])
    angle, wave = rng.uniform(-0.8, 0.8, (count, MOST_BLOBS)), rng.uniform(*WAVE, (count, MOST_BLOBS))
    fields = (np.where(inside, inside_x, outside_x), np.where(inside, inside_y, outside_y), radius, strength * shown, inside, angle, wave)
    return np.stack(fields, axis=-1).astype(np.float32)


def _inside_lungs(rng: np.random.Generator, p: dict[str, Floats], shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Places in either lung, away from heart and edges."""
    side = np.where(rng.random(shape) < 0.5, -1.0, 1.0)
    angle, distance = rng.uniform(0, 2 * np.pi, shape), 0.62 * np.sqrt(rng.random(shape))
    x = side * (LUNG_CENTRE_X + 0.03) + distance * np.cos(angle) * p["lung_width"][:, None]
    y = LUNG_CENTRE_Y - 0.02 + distance * np.sin(angle) * p["lung_height"][:, None] * 0.85
    return x, y


def _outside_lungs(rng: np.random.Generator, shape: tuple[int, int]) -> tuple[Floats, Floats]:
    """Places in the abdomen, a shoulder or the middle of the chest."""
    where, side = rng.random(shape), np.where(rng.random(shape) < 0.5, -1.0, 1.0)
    a, b = rng.random(shape), rng.random(shape)
    x = np.select([where < 0.45, where < 0.75], [1.4 * a - 0.7, side * (0.6 + 0.2 * a)], 0.16 * a - 0.08)
    y = np.select([where < 0.45, where < 0.75], [0.62 + 0.3 * b, -0.80 + 0.15 * b], -0.6 + 0.8 * b)
    return x, y


def _images(rng: np.random.Generator, size: int, p: dict[str, Floats], blobs: Floats, scanner: IntArray, scanners: int) -> Column:
    """All images, uint8 [N, size, size], drawn in chunks so that memory stays small."""
    settings = np.random.default_rng([SEED, scanners])
    gain, contrast = settings.uniform(0.90, 1.10, scanners), settings.uniform(0.88, 1.15, scanners)
    noise, blur = settings.uniform(0.008, 0.030, scanners), settings.uniform(0.005, 0.030, scanners)
    out = np.empty((len(scanner), size, size), dtype=np.uint8)
    step = max(1, _CHUNK_PIXELS // size**2)
    for start in range(0, len(scanner), step):
        part = slice(start, start + step)
        clean = draw(size, {name: value[part] for name, value in p.items()}, blobs[part])
        own = scanner[part]
        image = _blurred(clean, blur[own])
        image = gain[own, None, None] * np.clip(image, 0, 1.2) ** contrast[own, None, None]
        image += noise[own, None, None] * rng.standard_normal(image.shape, dtype=np.float32)
        out[part] = np.clip(image * 230 + 8, 0, 255).astype(np.uint8)
    return out


def _blurred(images: Floats, width: Floats) -> Floats:
    """Gaussian blur with a standard deviation of `width` [B] (in half images), as a product with a row-normalised matrix each side."""
    size = images.shape[1]
    offsets = (np.arange(size)[:, None] - np.arange(size)) * (2 / size)
    kernel = np.exp(-0.5 * (offsets / np.maximum(width, 1e-3)[:, None, None]) ** 2)
    kernel = (kernel / kernel.sum(axis=2, keepdims=True)).astype(np.float32)
    return np.asarray(kernel @ images @ kernel.transpose(0, 2, 1))
