# SPDX-License-Identifier: Apache-2.0
"""Patients who want no part in training any more: `exclusions.jsonl` in the site's home, one line a decision, append-only, synced.

    exclude, include    hospital IT's decisions, by pseudonym; who decided, and when
    Participants        a cohort without them; the file is looked at for each message, so a decision counts from the next round on

An excluded patient is neither drawn in training nor scored among the held-out nor counted in a survey, whatever study it is. Split, nominal
size, sampling rate, account and budget stay as they are: what was spent stays spent, and a private study whose patients are all excluded
goes on with noise alone. What models learnt before is not unlearnt. A line that cannot be read stops everything at the site until it is
repaired: a list that is not whole must not let anybody back in.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from client.pseudonyms import Pseudonyms
from client.site_home import SiteHome
from common.crypto.secrets import Secret
from common.data.cohort import Cohort
from common.errors import InputError, StorageError
from common.files import append_durably, locked

PSEUDONYM: Final = "^wrp1-[0-9a-f]{64}$"
_Stamp = tuple[int, int, int] | None


class Decision(BaseModel):
    """One line. `number` counts from 1, `time` is seconds since the epoch; `excluded` false takes an exclusion back."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    number: int = Field(ge=1)
    patient: str = Field(pattern=PSEUDONYM)
    excluded: bool
    time: float
    by: str = Field(min_length=1, max_length=200)


@dataclass(frozen=True)
class Exclusions:
    """All decisions, in order."""

    decisions: tuple[Decision, ...] = ()

    @property
    def now(self) -> frozenset[str]:
        """Pseudonyms of those who are excluded."""
        last = {one.patient: one.excluded for one in self.decisions}
        return frozenset(patient for patient, excluded in last.items() if excluded)

    def throughout(self, patient: str, begin: float, end: float) -> bool:
        """Whether a patient was excluded all the time from `begin` to `end` (seconds since the epoch), both among it."""
        own = [one for one in self.decisions if one.patient == patient]
        before = [one for one in own if one.time < begin]
        return bool(before) and before[-1].excluded and all(one.excluded for one in own if begin <= one.time <= end)

    def since(self, patient: str) -> Decision | None:
        """The decision that excludes a patient now; None when nothing does."""
        newest = None
        for one in self.decisions:
            if one.patient == patient:
                newest = None if not one.excluded else newest or one
        return newest


def exclusions_path(home: Path) -> Path:
    """The list of the site with that home."""
    return SiteHome(home).exclusions


def read_exclusions(home: Path) -> Exclusions:
    """The list as it is now; a last line cut by a crash was never confirmed and is left out. Raises StorageError for any other damage."""
    path = exclusions_path(home)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return Exclusions()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error}); check its permissions") from error
    found = []
    for number, line in enumerate(content[: content.rfind(b"\n") + 1].splitlines(), 1):
        found.append(_read(line, number, path))
    return Exclusions(tuple(found))


def exclude(home: Path, patients: Iterable[str], by: str, now: float) -> int:
    """Exclude patients (pseudonyms), durably; returns how many were not excluded before. Raises InputError, StorageError."""
    return _decide(home, patients, True, by, now)


def include(home: Path, patients: Iterable[str], by: str, now: float) -> int:
    """Take exclusions back, durably; returns how many there were. Raises InputError, StorageError."""
    return _decide(home, patients, False, by, now)


def remaining(cohort: Cohort, excluded: frozenset[str], pseudonyms: Pseudonyms) -> Cohort:
    """The cohort without the rows of excluded patients; the rest, and what it is for, stays as it is."""
    if not excluded:
        return cohort
    gone = np.array([pseudonyms.of(one) in excluded for one in cohort.dataset.patient_ids], dtype=np.bool_)  # [P]
    keep = ~gone[cohort.dataset.patients[cohort.rows]]
    return Cohort(cohort.dataset, cohort.rows[keep], cohort.split[keep])


@dataclass
class ExclusionWatch:
    """The list of one site, for a process that lives long: `current` reads the file again when it has changed."""

    home: Path
    _stamp: _Stamp = None
    _excluded: frozenset[str] = field(default_factory=frozenset)

    def current(self) -> frozenset[str]:
        """Pseudonyms of those who are excluded now. Raises StorageError."""
        stamp = _stamp_of(exclusions_path(self.home))
        if stamp != self._stamp:
            self._excluded = read_exclusions(self.home).now
            self._stamp = stamp
        return self._excluded


class Participants:
    """Cohorts without those who are excluded now. The same cohort gives the very same object until the list changes."""

    def __init__(self) -> None:
        self._watches: dict[Path, ExclusionWatch] = {}
        self._known: dict[Path, tuple[Cohort, frozenset[str], Cohort]] = {}

    def of(self, folder: Path, home: Path, cohort: Cohort) -> Cohort:
        """Of the cohort that the site's folder `folder` has. Raises StorageError."""
        excluded = self._watches.setdefault(home, ExclusionWatch(home)).current()
        if not excluded:
            return cohort
        known = self._known.get(folder)
        if known is None or known[0] is not cohort or known[1] != excluded:
            left = remaining(cohort, excluded, Pseudonyms(Secret.read(SiteHome(home).key)))
            known = self._known[folder] = (cohort, excluded, left)
        return known[2]


def _decide(home: Path, patients: Iterable[str], excluded: bool, by: str, now: float) -> int:
    path = exclusions_path(home)
    with locked(path.with_name(f".{path.name}.lock")):
        known = read_exclusions(home)
        standing, number = known.now, len(known.decisions)
        changed = [one for one in dict.fromkeys(patients) if (one in standing) is not excluded]
        try:
            lines = [
                Decision(number=number + place, patient=patient, excluded=excluded, time=now, by=by)
                for place, patient in enumerate(changed, 1)
            ]
        except ValidationError as error:
            raise InputError(
                f"exclusions: {error.errors()[0]['loc'][0]} is not valid; give pseudonyms, and who decides in a few words"
            ) from error
        if lines:
            append_durably(path, "".join(f"{_text(line)}\n" for line in lines).encode())
    return len(changed)


def _text(line: Decision) -> str:
    return json.dumps(line.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _read(line: bytes, number: int, path: Path) -> Decision:
    remedy = "restore the file from its backup, then exclude again who came later"
    try:
        decision = Decision.model_validate_json(line)
    except ValidationError as error:
        raise StorageError(f"{path}: line {number} cannot be read; {remedy}") from error
    if decision.number != number:
        raise StorageError(f"{path}: line {number} says that it is number {decision.number}: lines were removed or added; {remedy}")
    return decision


def _stamp_of(path: Path) -> _Stamp:
    try:
        facts = path.stat()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be looked at ({error.strerror or error}); check its permissions") from error
    return (facts.st_ino, facts.st_size, facts.st_mtime_ns)
