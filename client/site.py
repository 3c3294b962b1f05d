# SPDX-License-Identifier: Apache-2.0
"""A site's own folder: what it holds, and how a client app finds it.

`site.json` names the site, its cohort and its public nominal size, and says what it allows; the site writes its ledger, its outbox, its
journal and its evaluations beside it. Everything that must survive a process is in here, so any worker may serve any site.
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

from client.ledger.book import Ledger
from client.ledger.receipts import ReceiptFile
from common.crypto.secrets import Secret
from common.data.cohort import Cohort, Dataset, Split
from common.data.store import open_dataset
from common.errors import DataError, InputError
from common.files import write_atomic
from common.privacy.charge_book import Line

SITE_TABLE_VARIABLE = "WARDROUND_SITE_TABLE"
SITE_FILE = "site.json"


class SiteFile(BaseModel):
    """`site.json`. `nominal_patients` (N0) is a public number: the divisor of a private step is sampling rate times N0.

    `unprotected_studies` lists the ids of studies without privacy that this site allows. `delta` is δ of every account of its patients;
    `epsilon_cap` the most ε that an account may ever spend (without it each study's own ε, over the whole history). Once something left
    without protection, private studies on those patients are refused, unless `train_after_unprotected` says in words why not.
    `coordinator_key` is the public key (hexadecimal) that receipts for the ledger are checked with.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1, max_length=63)
    dataset: str
    rows: str = "rows.npy"
    split: str = "split.npy"
    nominal_patients: int = Field(ge=1)
    unprotected_studies: tuple[str, ...] = ()
    delta: float = Field(1e-6, gt=0, le=1e-5)
    epsilon_cap: float | None = Field(None, gt=0)
    train_after_unprotected: str = ""
    coordinator_key: str | None = Field(None, pattern="^[0-9a-f]{64}$")

    @classmethod
    def read(cls, folder: Path) -> SiteFile:
        """The site's settings. Raises DataError with what is missing or damaged."""
        if not (folder / SITE_FILE).exists():
            raise DataError(f"{folder}: not a site's folder, it has no {SITE_FILE}; give the folder of one site")
        try:
            return cls.model_validate_json((folder / SITE_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / SITE_FILE}: cannot read the site's settings ({error}); write the folder anew") from error


@dataclass(frozen=True)
class Site:
    """An opened site folder."""

    folder: Path
    settings: SiteFile
    cohort: Cohort

    @classmethod
    def open(cls, folder: Path) -> Site:
        """Open a site's folder. Raises DataError with what is missing or damaged."""
        facts = SiteFile.read(folder)
        try:
            rows = np.load(folder / facts.rows, allow_pickle=False)
            split = np.load(folder / facts.split, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / SITE_FILE}: cannot open the site's folder ({error}); write it anew") from error
        return cls(folder, facts, Cohort(_opened(facts.dataset), rows, split))

    @property
    def name(self) -> str:
        """The site's name."""
        return self.settings.name

    @property
    def nominal_patients(self) -> int:
        """The public number N0."""
        return self.settings.nominal_patients

    @property
    def unprotected_studies(self) -> tuple[str, ...]:
        """Ids of studies without privacy that this site allows."""
        return self.settings.unprotected_studies

    def patient_ids(self) -> dict[Line, list[str]]:
        """Who may pay on which line: those who train, and those who are held out."""
        rows = {Line.TRAINING: self.cohort.rows_in(Split.TRAIN), Line.HELD_OUT: self.cohort.rows[self.cohort.split != Split.TRAIN]}
        dataset = self.cohort.dataset
        return {line: [dataset.patient_ids[number] for number in np.unique(dataset.patients[chosen])] for line, chosen in rows.items()}

    @property
    def outbox(self) -> Path:
        """Finished replies, kept until the server has moved on."""
        return self.folder / "outbox"


@lru_cache(maxsize=2)
def _opened(folder: str) -> Dataset:
    """A data set, opened once for all the sites of a process that share it; it never changes on disk."""
    return open_dataset(Path(folder))


def ledger_path(folder: Path) -> Path:
    """The privacy ledger of the site in `folder`."""
    return folder / "ledger.sqlite"


def key_path(folder: Path) -> Path:
    """The site's secret key; it never leaves and belongs into the backup."""
    return folder / "site.key"


def receipts_path(folder: Path) -> Path:
    """The coordinator's receipts for the ledger; not in the same backup, so that an old ledger is seen to be old."""
    return folder / "receipts.jsonl"


def open_ledger(folder: Path) -> Ledger:
    """The ledger of the site in `folder`. Raises DataError, StorageError when settings or key cannot be read."""
    secret = Secret.read(key_path(folder))
    receipts = ReceiptFile(receipts_path(folder), secret, SiteFile.read(folder).coordinator_key)
    return Ledger(ledger_path(folder), secret, receipts)


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
    """Write a site's folder; the cohort's images stay in the data set's folder, `facts.dataset`. A key that is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    Secret.ensure(key_path(folder))
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
