# SPDX-License-Identifier: Apache-2.0
"""A site's own folder: what it holds, and how a client app finds it.

`site.json` names the site, its cohort and its public nominal size; the site writes its charges, its outbox, its journal and its
evaluations beside it. Everything that must survive a process is in here, so any worker may serve any site.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from flwr.app import Context
from pydantic import BaseModel, ConfigDict, Field

from common.data.cohort import Cohort, Dataset
from common.data.store import open_dataset
from common.errors import DataError, InputError
from common.files import write_atomic

SITE_TABLE_VARIABLE = "WARDROUND_SITE_TABLE"
SITE_FILE = "site.json"


class SiteFile(BaseModel):
    """`site.json`. `nominal_patients` (N0) is a public number: the divisor of a private step is sampling rate times N0.

    `unprotected_studies` lists the ids of studies without privacy that this site allows.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=63)
    dataset: str
    rows: str = "rows.npy"
    split: str = "split.npy"
    nominal_patients: int = Field(ge=1)
    unprotected_studies: tuple[str, ...] = ()


@dataclass(frozen=True)
class Site:
    """An opened site folder."""

    folder: Path
    name: str
    nominal_patients: int
    unprotected_studies: tuple[str, ...]
    cohort: Cohort

    @classmethod
    def open(cls, folder: Path) -> Site:
        """Open a site's folder. Raises DataError with what is missing or damaged."""
        path = folder / SITE_FILE
        try:
            facts = SiteFile.model_validate_json(path.read_text(encoding="utf-8"))
            rows = np.load(folder / facts.rows, allow_pickle=False)
            split = np.load(folder / facts.split, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot open the site's folder ({error}); write it anew") from error
        return cls(folder, facts.name, facts.nominal_patients, facts.unprotected_studies, Cohort(_opened(facts.dataset), rows, split))

    @property
    def charges_path(self) -> Path:
        """The append-only file of privacy charges."""
        return charges_path(self.folder)

    @property
    def outbox(self) -> Path:
        """Finished replies, kept until the server has moved on."""
        return self.folder / "outbox"


@lru_cache(maxsize=2)
def _opened(folder: str) -> Dataset:
    """A data set, opened once for all the sites of a process that share it; it never changes on disk."""
    return open_dataset(Path(folder))


def charges_path(folder: Path) -> Path:
    """The append-only file of privacy charges of the site in `folder`."""
    return folder / "charges.jsonl"


def journal_path(folder: Path) -> Path:
    """The site's own record of its rounds; it never leaves."""
    return folder / "rounds.jsonl"


def log_path(folder: Path) -> Path:
    """The site's own log of failures with their causes; it never leaves."""
    return folder / "site.log"


def evaluation_path(folder: Path, after_round: int) -> Path:
    """Scores of the global model after so many rounds on the site's held-out images; they never leave."""
    return folder / "evaluations" / f"after-round-{after_round:05d}.npz"


def write_site(folder: Path, facts: SiteFile, cohort: Cohort) -> None:
    """Write a site's folder; the cohort's images stay in the data set's folder, `facts.dataset`."""
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / facts.rows, cohort.rows)
    np.save(folder / facts.split, cohort.split)
    write_atomic(folder / SITE_FILE, facts.model_dump_json(indent=1))


SiteSource = Callable[[Context], Path]


def site_from_table(context: Context) -> Path:
    """The folder of the site that a node stands for, by `partition-id` and the table named in the environment.

    The table is a JSON list of folders, relative to its own place. Raises InputError when either is missing.
    """
    table = os.environ.get(SITE_TABLE_VARIABLE)
    if not table:
        raise InputError(f"{SITE_TABLE_VARIABLE} is not set; it names the table of site folders")
    number = context.node_config.get("partition-id")
    folders = json.loads(Path(table).read_text(encoding="utf-8"))
    if not isinstance(number, int) or not 0 <= number < len(folders):
        raise InputError(f"partition-id {number!r} has no line in {table}, which lists {len(folders)} sites")
    return Path(table).parent / str(folders[number])
