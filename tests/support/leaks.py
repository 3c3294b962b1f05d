# SPDX-License-Identifier: Apache-2.0
"""Looks for patients in everything that a federation leaves behind: logs, databases, records, what its processes printed.

Searched for, in every file of the folder: each patient id of each hospital, where its data lies, and stretches of its images (as bytes and
as float32 from 0 to 1). Allowed are the data itself, the hospital's own store of it (cache/datasets in its folder), and the line in its
site.yaml that says where it lies. Not found: what is encrypted or compressed.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from simulations.loopback import Hospital, Loopback

WINDOW_PIXELS = 48
FEWEST_VALUES = 16
IMAGES = 5
SHORTEST_PREFIX = 4
DATA_FOLDER, POLICY = "data", "site.yaml"
STORE = ("cache", "datasets")


@dataclass(frozen=True)
class Needles:
    """What must be nowhere, of one hospital: `kinds` maps a kind to the byte strings."""

    hospital: str
    kinds: dict[str, tuple[bytes, ...]]

    def in_file(self, content: bytes) -> Iterator[str]:
        """The kinds that `content` holds."""
        for kind, needles in self.kinds.items():
            common = beginning(needles)
            if len(common) >= SHORTEST_PREFIX and common not in content:
                continue
            if any(needle in content for needle in needles):
                yield kind


def beginning(texts: tuple[bytes, ...]) -> bytes:
    """What all of them begin with."""
    first, last = min(texts), max(texts)
    return first[: next((place for place, (left, right) in enumerate(zip(first, last, strict=False)) if left != right), len(first))]


def needles_of(hospital: Hospital) -> Needles:
    """Of a hospital whose data is an npz file."""
    with np.load(hospital.data, allow_pickle=False) as stored:
        ids, images = np.unique(stored["patient_id"]), stored["images"]
    assert len(ids) and all(len(str(each)) >= SHORTEST_PREFIX for each in ids), "ids so short are found everywhere"
    paths = (str(hospital.data), str(hospital.data.resolve()), f"{DATA_FOLDER}/{hospital.data.name}")
    pixels = tuple(stretch for image in images[:IMAGES] for stretch in stretches(image))
    assert pixels, "no image has a stretch that could be told from chance"
    kinds = {"a patient id": tuple(str(each).encode() for each in ids), "where its data lies": tuple(path.encode() for path in paths)}
    return Needles(hospital.name, {**kinds, "pixels": pixels})


def stretches(image: np.ndarray) -> Iterator[bytes]:
    """The liveliest stretch of an image's pixels, as it is stored and as float32; none for an image that is nearly flat."""
    flat = image.reshape(-1)
    windows = [flat[start : start + WINDOW_PIXELS] for start in range(0, flat.size - WINDOW_PIXELS + 1, WINDOW_PIXELS // 2)]
    best = max(windows, key=lambda window: len(np.unique(window)))
    if len(np.unique(best)) >= FEWEST_VALUES:
        yield best.tobytes()
        yield (best.astype(np.float32) / np.float32(255)).tobytes()


def leaks(federation: Loopback, hospitals: Iterable[Hospital]) -> list[str]:
    """`file: holds … of hospital`, for everything that was found; also raises when there was nothing to look at."""
    needles = [needles_of(hospital) for hospital in hospitals]
    files = [path for path in sorted(federation.folder.rglob("*")) if path.is_file() and not path.is_symlink()]
    looked_at = [path for path in files if not _is_allowed(path.relative_to(federation.folder))]
    assert any(path.name == "daemon.log" for path in looked_at) and any(path.suffix == ".sqlite" for path in looked_at)
    return [
        f"{path.relative_to(federation.folder)}: holds {kind} of {each.hospital}"
        for path in looked_at
        for content in (path.read_bytes(),)
        for each in needles
        for kind in each.in_file(content)
    ]


def _is_allowed(path: Path) -> bool:
    at_hospital = path.parts[2:] if path.parts[0] == "hospitals" else ()
    return path.parts[0] == DATA_FOLDER or at_hospital == (POLICY,) or at_hospital[:2] == STORE
