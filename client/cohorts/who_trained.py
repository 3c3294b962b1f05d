# SPDX-License-Identifier: Apache-2.0
"""Which models used a patient: from the site's own records, for the hospital's answer to that patient.

    studies' folders   whether the patient was in the cohort, and trained or was held out to measure
    ledger             what was charged and left: each round of training, each measurement, each survey
    log of what left   when
    exclusions         whether the patient was excluded all the while

Differential privacy draws patients at random, and the draws are not kept: "trained" says that the patient could be drawn in these rounds,
not that every round drew them. In doubt a patient counts as used: `excluded` is said only when the exclusion was there before the message
before, and was not taken back until the reply had left. A reply that never left is not listed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from client.approvals import Approvals
from client.cohorts.exclusions import Exclusions, read_exclusions
from client.egress import open_chain
from client.egress_chain import EgressLine
from client.offers import read_offer
from client.pseudonyms import Pseudonyms
from client.site import SITE_FILE, Site, open_ledger
from client.site_home import SiteHome
from common.crypto.secrets import Secret
from common.data.cohort import Split
from common.errors import WardroundError
from common.privacy.charge_book import Charge, ChargeKey, Line, State
from common.study import Study

Use = Literal["trained", "measured", "surveyed", "excluded"]
_KIND: Final[dict[Use, str]] = {"trained": "update", "measured": "evaluated", "surveyed": "surveyed"}
"""The kind of message that such a use leaves in."""
_LEFT: Final = (State.RELEASING, State.SENT, State.RECOVERED)


@dataclass(frozen=True)
class RunUse:
    """What one run of a study did with a patient. `first`, `last`: seconds since the epoch, None when the log does not say."""

    study: str
    study_id: str
    run_id: str
    use: Use
    rounds: tuple[int, ...]
    first: float | None
    last: float | None


@dataclass(frozen=True)
class Answer:
    """`patient` is the pseudonym. `in_cohorts` counts approved studies that have the patient in their cohort, used or not.

    `unknown` names studies whose data cannot be looked at, with the reason. `excluded_since` is when the patient was excluded, if they are.
    """

    patient: str
    uses: tuple[RunUse, ...]
    in_cohorts: int
    unknown: tuple[str, ...]
    excluded_since: float | None


@dataclass(frozen=True)
class Records:
    """What the site has written down."""

    charges: tuple[Charge, ...]
    lines: tuple[EgressLine, ...]
    exclusions: Exclusions
    began: Mapping[str, float]

    @classmethod
    def of(cls, home: SiteHome) -> Records:
        """Raises StorageError, RefusedError when a record is damaged or behind."""
        return cls(
            tuple(open_ledger(home.folder).charges()),
            tuple(open_chain(home).lines()),
            read_exclusions(home.folder),
            Approvals(home).began(),
        )

    def left(self, key: ChargeKey, kind: str) -> tuple[float | None, float | None]:
        """When the reply of a charge first left, and a moment before which its work surely had not begun; None where nothing says so."""
        previous = self.began.get(key.run_id)
        for line in self.lines:
            if (line.study_id, line.run_id) != (key.study_id, key.run_id):
                continue
            if line.round == key.round and line.kind == kind:
                return line.time, previous
            previous = line.time
        return None, None


@dataclass(frozen=True)
class Seen:
    """A patient in one approved study: what the images are for there."""

    study_id: str
    title: str
    is_survey: bool
    splits: frozenset[Split]


def who_trained(home: SiteHome, patient: str) -> Answer:
    """Which studies used a patient, given by the hospital's id or the pseudonym. Raises DataError, StorageError, RefusedError."""
    secret = Secret.read(home.key)
    pseudonyms = Pseudonyms(secret)
    name, records = pseudonyms.of(patient), Records.of(home)
    uses: list[RunUse] = []
    unknown, found = [], 0
    for folder in sorted(path.parent for path in home.studies.glob(f"*/{SITE_FILE}")):
        study = _study(home, folder.name)
        title = study.name if study is not None else folder.name[:12]
        try:
            splits = _splits(Site.open(folder), name, pseudonyms)
        except WardroundError as error:
            unknown.append(f"{title}: {str(error).splitlines()[0]}")
            continue
        found += splits is not None
        if splits is not None:
            uses += _uses(records, name, Seen(folder.name, title, study is not None and study.purpose == "survey", splits))
    since = records.exclusions.since(name)
    return Answer(name, tuple(uses), found, tuple(unknown), None if since is None else since.time)


def _splits(site: Site, patient: str, pseudonyms: Pseudonyms) -> frozenset[Split] | None:
    """What the patient's images are for in a study; None when there are none."""
    dataset, cohort = site.cohort.dataset, site.cohort
    numbers = [number for number, one in enumerate(dataset.patient_ids) if pseudonyms.of(one) == patient]
    own = cohort.split[np.isin(dataset.patients[cohort.rows], numbers)]
    return frozenset(Split(int(value)) for value in np.unique(own)) if len(own) else None


def _uses(records: Records, patient: str, seen: Seen) -> Iterator[RunUse]:
    """One line for each run and use; rounds are put together."""
    gathered: dict[tuple[str, Use], list[tuple[int, float | None]]] = {}
    for charge in records.charges:
        use = _use(charge.key.line, seen)
        if charge.key.study_id != seen.study_id or charge.state not in _LEFT or use is None:
            continue
        when, before = records.left(charge.key, _KIND[use])
        if when is not None and before is not None and records.exclusions.throughout(patient, before, when):
            use = "excluded"
        gathered.setdefault((charge.key.run_id, use), []).append((charge.key.round, when))
    for (run_id, use), rounds in gathered.items():
        times = [when for _, when in rounds if when is not None]
        numbers = tuple(sorted({number for number, _ in rounds}))
        yield RunUse(seen.title, seen.study_id, run_id, use, numbers, min(times, default=None), max(times, default=None))


def _use(line: Line, seen: Seen) -> Use | None:
    """What a charge on a line says that the patient was used for."""
    if seen.is_survey:
        return "surveyed"
    if line is Line.TRAINING:
        return "trained" if Split.TRAIN in seen.splits else None
    return "measured" if Split.TEST in seen.splits else None


def _study(home: SiteHome, study_id: str) -> Study | None:
    with suppress(WardroundError):
        return read_offer(home, study_id).study
    return None


def ranges(rounds: Iterable[int]) -> str:
    """`1–3, 5`."""
    parts: list[list[int]] = []
    for number in sorted(rounds):
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in parts)
