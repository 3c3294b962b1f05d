# SPDX-License-Identifier: Apache-2.0
"""`cohort build`: from a hospital's files to the folder of a cohort.

    1  which files there are, and what the table says of them          `sources`, `tables`; a wrong table stops here
    2  each file decoded and made small, by several processes          `decode_pool` into `journal`, in DIR.part/; may be stopped, goes on
    3  files and table brought together                                `joining`
    4  the folder, under its name when it is complete                  `assemble`

Only pixels and the listed columns enter; ids become pseudonyms in this process, before anything is written. Memory does not grow with the
images: pixels go to the disk as they come, and only a line of text for each image is kept.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from client.cohorts.assemble import Contents, Shape, write_cohort, write_images, write_records
from client.cohorts.decode_pool import Outcome, ingest_all
from client.cohorts.ingest import PixelSettings
from client.cohorts.joining import Decision, Join
from client.cohorts.journal import Journal
from client.cohorts.layout import CohortFile
from client.cohorts.npz_source import NpzSource
from client.cohorts.sources import Layout, SourceFile, check_layout, find_files, layout_of
from client.cohorts.tables import LabelTable, Listed, read_lines, read_table
from client.pseudonyms import Pseudonyms
from common.crypto.secrets import Secret
from common.errors import DataError, RunInterrupted, StorageError
from common.files import sync_folder

MOST_NAMED = 10
Progress = Callable[[int, int], None]
"""Told how many files are done, of how many."""


def untold(_done: int, _total: int) -> None:
    """Progress that nobody sees."""


@dataclass(frozen=True)
class BuildOptions:
    """What to build. `images` is a folder or a file, `out` the folder of the cohort; `layout` None is found out."""

    images: Path
    out: Path
    labels: Path | None = None
    listed: Listed = field(default_factory=Listed)
    layout: Layout | None = None
    pixels: PixelSettings = field(default_factory=PixelSettings)
    workers: int = 1
    parquet: bool = False

    @property
    def part(self) -> Path:
        """Where the work lies until the cohort is complete."""
        return self.out.with_name(self.out.name + ".part")


@dataclass(frozen=True)
class BuildReport:
    """What was built. `decoded` files were read now, `kept` ones by an earlier start. `refused` names each file with its reason."""

    cohort: CohortFile
    layout: Layout
    decoded: int
    kept: int
    refused: tuple[tuple[str, str], ...]
    seconds: float

    @property
    def reasons(self) -> list[tuple[str, int]]:
        """Reasons for refusals with their counts, the most frequent first."""
        return Counter(reason for _, reason in self.refused).most_common()


def build(options: BuildOptions, secret: Secret, progress: Progress = untold) -> BuildReport:
    """Build a cohort. The same call again after an interruption goes on.

    Raises DataError when nothing can be used or a table is wrong, StorageError, and RunInterrupted after Ctrl-C.
    """
    started = time.monotonic()
    _check(options)
    layout = options.layout or layout_of(options.images, has_paths=options.labels is not None and options.listed.path is not None)
    check_layout(options.images, layout)
    try:
        with _working(options):
            work = _Features(options, secret) if layout == "features" else _Images(options, layout, secret, progress)
            report = work.run(started)
            _finish(options)
    except OSError as error:
        raise StorageError(f"cannot write {options.part}: {error.strerror or error}; check free space and permissions") from error
    return report


def _check(options: BuildOptions) -> None:
    listed, problems = options.listed, []
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        problems.append(f"{options.out}: is there already; give another --out, or move it away")
    is_file = options.images.is_file()
    if options.labels is None and not is_file and (listed.entering or listed.identifier or listed.path):
        problems.append("columns are named and there is no table; give it with --labels FILE.csv")
    if options.labels is not None and is_file:
        problems.append("--labels belongs to a folder of images; a file brings its own columns")
    if problems:
        raise DataError(problems)


@contextmanager
def _working(options: BuildOptions) -> Iterator[None]:
    """Hold DIR.part for this process alone."""
    options.part.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (options.part / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise StorageError(f"{options.part}: another build is at work on it; wait for its end") from error
        yield


def _finish(options: BuildOptions) -> None:
    """The folder gets its name; then what was only for the work goes."""
    if options.out.exists():
        options.out.rmdir()  # empty
    (options.part / "done").replace(options.out)
    sync_folder(options.out.absolute().parent)
    shutil.rmtree(options.part, ignore_errors=True)


def _new_folder(options: BuildOptions) -> Path:
    folder = options.part / "done"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    return folder


@dataclass(frozen=True)
class _Features:
    """A table of features: no images, a row of the manifest for each line."""

    options: BuildOptions
    secret: Secret

    def run(self, started: float) -> BuildReport:
        """Write the cohort into DIR.part/done."""
        path, listed = self.options.images, self.options.listed
        if listed.identifier is None or not listed.entering:
            raise DataError(f"{path.name}: name its columns with --id-column (the patient), --label-column and --column")
        lines, contents = read_lines(path, listed, Pseudonyms(self.secret)), Contents(listed)
        for line in lines:
            problem = "has no patient id; fill it" if line.patient is None else _label_problem(listed, line.cells)
            if problem is None:
                contents.rows.append((str(line.patient), "", *line.cells))
            else:
                contents.refused.append((f"{path.name}:{line.number}", problem))
        _check_usable(contents, path)
        cohort = write_cohort(_new_folder(self.options), contents, None, self.secret, parquet=self.options.parquet)
        return BuildReport(cohort, "features", len(lines), 0, tuple(contents.refused), time.monotonic() - started)


def _label_problem(listed: Listed, cells: Sequence[str]) -> str | None:
    return "its label is empty; fill it, or take the line out" if listed.labels and not any(cells[: len(listed.labels)]) else None


def _check_usable(contents: Contents, path: Path) -> None:
    if not contents.rows:
        some = [f"{name}: {reason}" for name, reason in contents.refused[:MOST_NAMED]]
        raise DataError([*some, f"{path}: nothing in it can be used ({len(contents.refused)} refused); see the reasons above"])


class _Images:
    """A cohort of images."""

    def __init__(self, options: BuildOptions, layout: Layout, secret: Secret, progress: Progress) -> None:
        self._options, self._layout, self._secret, self._progress = options, layout, secret, progress
        self._pseudonyms = Pseudonyms(secret)
        self._npz = NpzSource.open(options.images, options.listed) if layout == "npz" else None
        self._files = self._npz.files() if self._npz is not None else find_files(options.images, _not_images(options))
        self._join = Join(layout, self._table(), self._pseudonyms)
        self._contents = Contents(options.listed)

    def _table(self) -> LabelTable | None:
        if self._npz is not None:
            return self._npz.table(self._pseudonyms)
        if self._options.labels is None:
            return None
        return read_table(self._options.labels, self._options.listed, self._pseudonyms, [file.name for file in self._files])

    def run(self, started: float) -> BuildReport:
        """Decode what was not decoded before, and write the cohort into DIR.part/done."""
        journal = Journal(self._options.part, self._options.pixels, self._secret)
        try:
            decoded = self._decode(journal)
            cohort = self._assemble(journal)
        finally:
            journal.close()
        kept = len(self._files) - decoded
        return BuildReport(cohort, self._layout, decoded, kept, tuple(self._contents.refused), time.monotonic() - started)

    def _decode(self, journal: Journal) -> int:
        """How many files were decoded now."""
        stamps = {file.name: journal.stamp(file.path) for file in self._files}
        missing = [file for file in self._files if not journal.has(file.name, stamps[file.name])]
        before = len(self._files) - len(missing)
        done = 0
        try:
            self._progress(before, len(self._files))
            with closing(self._outcomes(missing)) as outcomes:
                for source, found in outcomes:
                    journal.add(source.name, "" if found.died else stamps[source.name], found)
                    done += 1
                    self._progress(before + done, len(self._files))
        except KeyboardInterrupt as error:
            so_far = f"{before + done:,} of {len(self._files):,} files are decoded and kept in {self._options.part}"
            raise RunInterrupted(f"stopped; {so_far}. The same command goes on") from error
        return done

    def _outcomes(self, missing: list[SourceFile]) -> Generator[Outcome, None, None]:
        if self._npz is not None:
            return self._npz.ingest(missing, self._options.pixels)
        return ingest_all(missing, self._options.pixels, self._options.workers)

    def _assemble(self, journal: Journal) -> CohortFile:
        sizes = [(one.frame.side, one.frame.channels) for one in self._decisions(journal) if one.frame is not None]
        shape = Shape.of([side for side, _ in sizes], [channels for _, channels in sizes])
        folder, bits = _new_folder(self._options), self._options.pixels.bits
        fitting = (shape.fits(one) for one in self._decisions(journal))
        entering = write_records(folder, fitting, self._contents)
        images = write_images(folder / "images.npy", shape, bits, (journal.pixels(one.frame) for one in entering if one.frame is not None))
        self._name_unused_lines()
        _check_usable(self._contents, self._options.images)
        return write_cohort(folder, self._contents, images, self._secret, parquet=self._options.parquet)

    def _decisions(self, journal: Journal) -> Iterator[Decision]:
        for source in self._files:
            yield from self._join.decisions(source, journal.entry(source.name))

    def _name_unused_lines(self) -> None:
        table = self._join.table
        if table is not None:
            text = "there is no file that can be used for this line; correct it, or take it out"
            unused = table.unused(file.name for file in self._files)
            self._contents.refused.extend((f"{table.name}:{number}", text) for number in unused)


def _not_images(options: BuildOptions) -> tuple[Path, ...]:
    """What may lie below the folder of images and is none."""
    return (options.out, options.part, *((options.labels,) if options.labels else ()))


def default_workers() -> int:
    """A process for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
