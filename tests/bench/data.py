# SPDX-License-Identifier: Apache-2.0
"""`make bench-data`: a hospital's own data, from files to an epoch; figures of this machine, measured in one run.

    decode    one core: decode and resize of the shared DICOM samples, and of the same images as PNG files; then the same small images
              from the cohort's cache, in batches drawn at random (at least 20 x as many a second)
    epoch     a pass of training over 5,000 cached chest X-rays of 64 x 64, beside the same from a tensor in memory (at most 1.1 x)
    check     `cohort check` of these 5,000 images (under 60 s on two cores)

Decoding and reading are timed in seconds of a core, epochs and the check in seconds of the clock. Repetitions take turns and a ratio is
the median of the ratios within a turn, because a shared machine drifts. Exit code 1 when a limit is missed. `ARGS="decode check"` does
parts.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from client.cohorts.build import BuildOptions, build, default_workers
from client.cohorts.check import Order, check_cohort
from client.cohorts.ingest import PixelSettings, ingest
from client.cohorts.tables import Listed
from client.rows import ImageRows
from common import study
from common.crypto.secrets import Secret
from common.data.cohort import Dataset
from common.data.decode import decode
from common.data.store import materialise
from common.errors import DataError
from common.models.base import to_model_units
from common.models.registry import build_model

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
REPETITIONS = int(os.environ.get("BENCH_REPETITIONS", "5"))
SIZE_PIXELS, IMAGES, BATCH = 256, 5000, 64
LEAST_READ_TIMES_DECODE, MOST_EPOCH_TIMES_MEMORY, MOST_CHECK_SECONDS = 20.0, 1.1, 60.0
SETTINGS = PixelSettings(SIZE_PIXELS)
SECRET = Secret(b"b" * 32)
CPU = torch.device("cpu")


def seconds_of(work: Callable[[], object]) -> float:
    """How long it takes, once."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def core_seconds_of(work: Callable[[], object]) -> float:
    """How much of a core it takes, once: what others do on the machine does not count."""
    started = time.process_time()
    work()
    return time.process_time() - started


class Figures:
    """Lines of the report, and whether a limit was missed."""

    def __init__(self) -> None:
        self.table = Table("what", "figure", "limit")
        self.missed = False

    def add(self, what: str, figure: str, limit: str = "", *, met: bool = True) -> None:
        self.table.add_row(what, figure, limit + ("" if met else "  MISSED"))
        self.missed |= not met


def dicom_samples() -> list[Path]:
    """The samples whose codec is installed."""
    found = []
    for path in sorted((SHARED / "dicom_samples").glob("*.dcm")):
        try:
            list(decode(path))
            found.append(path)
        except DataError as error:
            Console(stderr=True).print(f"{path.name} is left out: {error}", markup=False)
    return found


def as_png(samples: list[Path], folder: Path) -> list[Path]:
    """Each frame of the samples as a PNG file."""
    from PIL import Image

    written = []
    for path in samples:
        for frame in decode(path):
            written.append(folder / f"{path.stem}-{frame.frame}.png")
            Image.fromarray(frame.pixels).save(written[-1])
    return written


def frames_of(files: list[Path]) -> int:
    """Decode and resize all of them; how many frames that were."""
    return sum(len(ingest(path.name, path, SETTINGS).frames) for path in files)


def bench_decode(folder: Path, figures: Figures) -> None:
    """Decoding by one core, and reading what was decoded from the cache, in turns."""
    samples = dicom_samples()
    pictures, frames = as_png(samples, folder), frames_of(samples)
    dataset, rates = cached_samples(folder, pictures), {"DICOM": [], "PNG": [], "read": []}  # type: dict[str, list[float]]
    rows = np.random.default_rng(0).integers(0, len(dataset), (200, BATCH))
    for _ in range(REPETITIONS):
        rates["DICOM"].append(frames / core_seconds_of(lambda: frames_of(samples)))
        rates["PNG"].append(len(pictures) / core_seconds_of(lambda: frames_of(pictures)))
        rates["read"].append(rows.size / core_seconds_of(lambda: [np.ascontiguousarray(dataset.images[chosen]) for chosen in rows]))
    for name in ("DICOM", "PNG"):
        figures.add(f"decode + resize to {SIZE_PIXELS}, {frames} {name} images, one core", f"{median(rates[name]):,.0f} images/s")
        times = median(read / decoded for read, decoded in zip(rates["read"], rates[name], strict=True))
        limit = f"at least {LEAST_READ_TIMES_DECODE:g} x"
        figures.add(f"cached read beside {name}", f"{times:,.0f} x", limit, met=times >= LEAST_READ_TIMES_DECODE)
    figures.add(
        f"cached read, {SIZE_PIXELS} x {SIZE_PIXELS} x {dataset.images.shape[1]}, one core", f"{median(rates['read']):,.0f} images/s"
    )


def cached_samples(folder: Path, pictures: list[Path]) -> Dataset:
    """A cohort of the pictures, each a patient of its own, as a study opens it."""
    export = folder / "export"
    for number, path in enumerate(pictures):
        (export / f"P{number}").mkdir(parents=True)
        path.rename(export / f"P{number}" / path.name)
        pictures[number] = export / f"P{number}" / path.name
    (folder / "t.csv").write_text("pid,label\n" + "".join(f"P{number},{number % 2}\n" for number in range(len(pictures))))
    build(BuildOptions(export, folder / "samples", folder / "t.csv", Listed("pid", None, ("label",)), pixels=SETTINGS), SECRET)
    return materialise(study.Data(source="cohort", image_size=SIZE_PIXELS, channels=3), folder / "samples", folder / "cache")


def chest_cohort(folder: Path) -> Path:
    """5,000 real chest X-rays of 64 x 64 as a cohort."""
    with np.load(SHARED / "kermany_cxr" / "kermany_cxr_64.npz") as stored:
        arrays = {name: stored[name][:IMAGES] for name in ("images", "patient_id", "pneumonia")}
    np.savez(folder / "chest.npz", **arrays)
    options = BuildOptions(folder / "chest.npz", folder / "chest", listed=Listed(None, None, ("pneumonia",)), pixels=PixelSettings(64))
    build(options, SECRET)
    return folder / "chest"


def bench_epoch(folder: Path, figures: Figures) -> None:
    """Minibatch SGD with the small network over the cached cohort and over a tensor in memory, the same rows in the same order."""
    data = study.Data(source="cohort", image_size=64, label_column="pneumonia")
    dataset = materialise(data, chest_cohort(folder), folder / "cache")
    memory = torch.from_numpy(np.array(dataset.images))
    labels = torch.from_numpy(np.array(dataset.labels)).float()
    cached = ImageRows(dataset, study.Augmentation(), CPU)
    order = np.random.default_rng(0).permutation(len(dataset))
    batches = [order[start : start + BATCH] for start in range(0, len(order), BATCH)]
    plain = study.Study(name="bench", data=data, privacy="none")
    train = Trainee(plain, labels)
    train.epoch(batches[:5], lambda rows: cached.inputs(rows, None))
    ratios, times = [], []
    for _ in range(REPETITIONS):
        from_cache = seconds_of(lambda: train.epoch(batches, lambda rows: cached.inputs(rows, None)))
        from_memory = seconds_of(lambda: train.epoch(batches, lambda rows: to_model_units(memory[torch.from_numpy(rows)])))
        ratios.append(from_cache / from_memory)
        times.append(from_cache)
    ratio = median(ratios)
    figures.add(f"epoch over {len(order):,} cached images of 64 x 64 (cnn, one thread)", f"{median(times):.2f} s")
    limit = f"at most {MOST_EPOCH_TIMES_MEMORY:g} x"
    figures.add("that beside an epoch from a tensor in memory", f"{ratio:.3f} x", limit, met=ratio <= MOST_EPOCH_TIMES_MEMORY)


class Trainee:
    """A network and its optimiser."""

    def __init__(self, plain: study.Study, labels: Tensor) -> None:
        self._model, self._labels = build_model(plain), labels
        self._optimiser = torch.optim.SGD(self._model.parameters(), lr=0.05)

    def epoch(self, batches: list[np.ndarray], inputs: Callable[[np.ndarray], Tensor]) -> None:
        """One pass over the batches."""
        loss = torch.nn.BCEWithLogitsLoss()
        for rows in batches:
            self._optimiser.zero_grad()
            loss(self._model(inputs(rows)).reshape(-1), self._labels[torch.from_numpy(rows)]).backward()
            self._optimiser.step()


def bench_check(folder: Path, figures: Figures) -> None:
    """The whole check, from nothing."""
    path = folder / "chest" if (folder / "chest").exists() else chest_cohort(folder)
    seconds = seconds_of(lambda: check_cohort(Order(path, secret=SECRET)))
    limit = f"under {MOST_CHECK_SECONDS:g} s on two cores"
    figures.add(
        f"check of {IMAGES:,} images of 64 x 64, {default_workers()} cores", f"{seconds:.1f} s", limit, met=seconds < MOST_CHECK_SECONDS
    )


PARTS = {"decode": bench_decode, "epoch": bench_epoch, "check": bench_check}


def main(names: list[str]) -> int:
    """Measure the parts (all by default) and print the table."""
    if unknown := set(names) - set(PARTS):
        Console(stderr=True).print(f"there is no part {', '.join(sorted(unknown))}; choose of {', '.join(PARTS)}")
        return 2
    torch.set_num_threads(1)
    figures = Figures()
    with tempfile.TemporaryDirectory() as folder:
        for name in names or PARTS:
            PARTS[name](Path(folder), figures)
    Console().print(figures.table)
    return int(figures.missed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
