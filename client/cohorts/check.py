# SPDX-License-Identifier: Apache-2.0
"""`cohort check`: everything that can be wrong with a built cohort, before anybody trains on it.

    gather    the folder is what the build sealed, its manifest is read, each image has a fingerprint (kept, so a check can go on)
    examine   each check by itself; one that lacks what it needs says so
    verdict   all of it; an error fails the cohort

A folder that was changed since it was built fails at once: nothing else that is found in it would mean anything. Nothing leaves the site.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from client.cohorts.check_duplicates import DUPLICATE_CHECKS
from client.cohorts.check_identity import IDENTITY_CHECKS
from client.cohorts.check_images import IMAGE_CHECKS
from client.cohorts.check_patients import PARTS, PATIENT_CHECKS
from client.cohorts.check_tables import TABLE_CHECKS
from client.cohorts.findings import Check, Finding, Material, NotMade, Severity, TextArray
from client.cohorts.hashes import Origin, all_fingerprints, was_read
from client.cohorts.layout import IMAGES, INGEST, files_path, open_images, read_manifest, seal_problem
from client.cohorts.records import FileRecord, read_record
from client.cohorts.verdict import CheckResult, Group, Verdict, now
from client.study_folder import SPLIT_PURPOSE
from common.crypto.secrets import Secret
from common.data.cohort import IntArray
from common.data.cohort_file import SPLIT, CohortFile, Manifest
from common.data.sources import file_sha256
from common.data.splits import split_of_patient
from common.errors import DataError
from common.study import Data, Study

CHECKS: Final[tuple[tuple[str, Check], ...]] = (
    *IMAGE_CHECKS,
    *DUPLICATE_CHECKS,
    *PATIENT_CHECKS,
    *IDENTITY_CHECKS,
    *TABLE_CHECKS,
)
INTACT: Final = "as it was built"
Progress = Callable[[str, int, int], None]
"""What is done, how much of it, and of how much."""


@dataclass(frozen=True)
class Order:
    """What to check. Without the site's `secret` neither seal nor keyed split can be looked at; `study` adds what it asks for.

    `quick`: the file of images is not read again when its size and time are those of the last check.
    """

    folder: Path
    study: Study | None = None
    secret: Secret | None = None
    quick: bool = False


def untold(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody sees."""


def check_cohort(order: Order, progress: Progress = untold) -> Verdict:
    """Check a cohort's folder. Damage is a finding, not an error. Raises DataError when the folder is no cohort at all."""
    cohort = CohortFile.read(order.folder)
    problem = _problem_of_seal(cohort, order.secret)
    try:
        if problem is not None:
            raise DataError(problem)
        _check_images_file(order, cohort, progress)
        material = gather(order, cohort, progress)
    except DataError as error:
        damage = tuple(Finding(Severity.ERROR, 1, *_text_and_remedy(text)) for text in error.problems)
        return _verdict(cohort, order, (), (CheckResult(name=INTACT, findings=damage),))
    made = [
        CheckResult(name=INTACT, not_made=None if order.secret else "the seal needs the site's key; run it at the site, or give --home")
    ]
    for number, (name, check) in enumerate(CHECKS, 1):
        made.append(_examined(name, check, material))
        progress("checks", number, len(CHECKS))
    return _verdict(cohort, order, groups(material), tuple(made))


def gather(order: Order, cohort: CohortFile, progress: Progress) -> Material:
    """Everything that the checks look at. Raises DataError when the folder is not what was built."""
    manifest = read_manifest(order.folder, cohort)
    numbers = np.unique(manifest.patients, return_inverse=True)[1].astype(np.int64)
    rows = np.arange(len(manifest)) if manifest.images is None else manifest.images
    parts = _parts(manifest, order)
    return Material(cohort, manifest, numbers, rows, parts, _prints(order.folder, cohort, progress), _records(order.folder), order.study)


def groups(material: Material) -> tuple[Group, ...]:
    """What each part of the split holds; all of it together where the split is not known."""
    parts: TextArray = np.full(len(material.manifest), "all") if material.parts is None else material.parts
    found = []
    for part in ("all", *PARTS):
        rows = np.flatnonzero(parts == part)
        if len(rows):
            counts = {column: _counts(material.manifest.cells[column], rows) for column in material.cohort.label_columns}
            found.append(Group(part=part, patients=len(np.unique(material.patients[rows])), rows=len(rows), labels=counts))
    return tuple(found)


def _examined(name: str, check: Check, material: Material) -> CheckResult:
    try:
        return CheckResult(name=name, findings=tuple(check(material)))
    except NotMade as reason:
        return CheckResult(name=name, not_made=str(reason))


def _verdict(cohort: CohortFile, order: Order, parts: tuple[Group, ...], made: tuple[CheckResult, ...]) -> Verdict:
    return Verdict(
        time=now(),
        cohort=cohort.digest,
        kind=cohort.kind,
        patients=cohort.patients,
        rows=cohort.rows,
        images=cohort.images.count if cohort.images else 0,
        study_id=order.study.id if order.study else None,
        groups=parts,
        checks=made,
    )


def _problem_of_seal(cohort: CohortFile, secret: Secret | None) -> str | None:
    return None if secret is None else seal_problem(cohort, secret)


def _text_and_remedy(text: str) -> tuple[str, str]:
    what, _, remedy = text.partition(";")
    return what.strip(), remedy.strip() or "build the cohort again"


def _check_images_file(order: Order, cohort: CohortFile, progress: Progress) -> None:
    """Compare the whole file of images with its digest. Raises DataError."""
    if cohort.images is None:
        return
    open_images(order.folder, cohort)
    path = order.folder / IMAGES
    if order.quick and was_read(order.folder / INGEST, Origin.of(path, cohort.images.sha256)):
        return
    progress("reading", 0, 1)
    if file_sha256(path) != cohort.images.sha256:
        raise DataError(f"{path}: was changed after the cohort was built; build the cohort again")
    progress("reading", 1, 1)


def _prints(folder: Path, cohort: CohortFile, progress: Progress) -> npt.NDArray[np.void] | None:
    if cohort.images is None:
        return None
    done = 0

    def more(count: int) -> None:
        nonlocal done
        done += count
        progress("images", done, len(images))

    images = open_images(folder, cohort)
    return all_fingerprints(images, folder / INGEST, Origin.of(folder / IMAGES, cohort.images.sha256), more)


def _records(folder: Path) -> tuple[FileRecord, ...] | None:
    """The records of the source files; None when they were deleted. Raises DataError for a damaged file."""
    with suppress(FileNotFoundError):
        try:
            with files_path(folder).open(encoding="utf-8") as lines:
                return tuple(read_record(line) for line in lines)
        except (UnicodeDecodeError, PermissionError) as error:
            raise DataError(f"{files_path(folder)}: cannot be read ({error}); delete ingest/ or build the cohort again") from error
    return None


def _parts(manifest: Manifest, order: Order) -> TextArray | None:
    """What each row is for: the cohort's own split, else by the site's key as in training."""
    if SPLIT in manifest.cells:
        return np.array(manifest.cells[SPLIT], dtype=np.str_)
    if order.secret is None:
        return None
    data = order.study.data if order.study is not None else Data.model_validate({})
    key = order.secret.derive(SPLIT_PURPOSE)
    names, owners = np.unique(manifest.patients, return_inverse=True)
    of_patient = [PARTS[split_of_patient(key, name, data.test_fraction, data.validation_fraction)] for name in names.tolist()]
    return np.array(of_patient, dtype=np.str_)[owners]


def _counts(cells: Iterable[str], rows: IntArray) -> dict[str, int]:
    values, counts = np.unique(np.array(list(cells), dtype=np.str_)[rows], return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}
