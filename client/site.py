# SPDX-License-Identifier: Apache-2.0
"""A site's own folder: what it holds, and how a client app finds it.

`site.json` names the site, its cohort and its public nominal size, and says what it allows. The site's home has its key, ledger,
receipts, outbox, journal and log: the same folder in a simulation, and at a hospital the one above all its studies' folders. Everything
that must survive a process is in there, so any worker may serve any site.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from client.ledger.book import Ledger
from client.ledger.receipts import ReceiptFile
from client.ledger.site_witness import SiteWitness
from client.site_home import CONFIG_FILE
from common.crypto.secrets import Secret
from common.data.cohort import Cohort, Dataset, Split
from common.data.store import open_dataset
from common.errors import DataError, InputError
from common.files import write_atomic
from common.privacy.charge_book import Line
from common.study import SHA256

if TYPE_CHECKING:
    from flwr.app import Context

SITE_TABLE_VARIABLE = "WARDROUND_SITE_TABLE"
SITE_FILE = "site.json"
SITE_FOLDER_KEY = "site-folder"


class SiteFile(BaseModel):
    """`site.json`. `nominal_patients` (N0) is a public number: the divisor of a private step is sampling rate times N0.

    `unprotected_studies` lists the ids of studies without privacy that this site allows. `delta` is δ of every account of its patients;
    `epsilon_cap` the most ε that an account may ever spend (without it each study's own ε, over the whole history). Once something left
    without protection, private studies on those patients are refused, unless `train_after_unprotected` says in words why not.
    `coordinator_key` is the public key (hexadecimal) that receipts for the ledger are checked with.

    `home` is the site's home, relative to this file's folder. At a hospital the file is about one study that was approved: nothing but
    `study_id`, in the runs `run_ids`, from the weights with the digest `initial_weights_sha256`; at most `rounds_a_day` in 24 hours.
    `survey_epsilon`: the most ε of all surveys on an account's line. `joint`: the data set brings its own split, so its patients pay on
    both lines of the ledger.
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
    home: str = "."
    study_id: str | None = Field(None, pattern=SHA256)
    run_ids: tuple[str, ...] | None = None
    initial_weights_sha256: str | None = Field(None, pattern=SHA256)
    rounds_a_day: int | None = Field(None, ge=1)
    survey_epsilon: float | None = Field(None, ge=0)
    joint: bool = False

    @classmethod
    def read(cls, folder: Path) -> SiteFile:
        """The site's settings. Raises DataError with what is missing or damaged."""
        if not (folder / SITE_FILE).exists():
            raise DataError(f"{folder}: not a site's folder, it has no {SITE_FILE} and no {CONFIG_FILE}; give the folder of one site")
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
    home: Path

    @classmethod
    def open(cls, folder: Path) -> Site:
        """Open a site's folder. Raises DataError with what is missing or damaged."""
        facts = SiteFile.read(folder)
        try:
            rows = np.load(folder / facts.rows, allow_pickle=False)
            split = np.load(folder / facts.split, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f"{folder / SITE_FILE}: cannot open the site's folder ({error}); write it anew") from error
        return cls(folder, facts, Cohort(_opened(str(folder / facts.dataset)), rows, split), _joined(folder, facts.home))

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
        """See `patients_on_lines`."""
        return patients_on_lines(self.cohort, joint=self.settings.joint)

    @property
    def outbox(self) -> Path:
        """Finished replies, kept until the server has moved on."""
        return self.home / "outbox"

    @property
    def round_lock(self) -> Path:
        """Held while something that leaves is charged, made and released."""
        return self.home / "round.lock"

    @property
    def cache(self) -> Path:
        """Where what is computed from its images may be kept: beside the data set itself, which lies in <cache>/datasets/<key>."""
        return (self.folder / self.settings.dataset).parents[1]


def patients_on_lines(cohort: Cohort, *, joint: bool = False) -> dict[Line, list[str]]:
    """Who may pay on which line: those who train, and those who are held out; `joint`: everybody on both."""
    rows = {Line.TRAINING: cohort.rows_in(Split.TRAIN), Line.HELD_OUT: cohort.rows[cohort.split != Split.TRAIN]}
    if joint:
        rows = dict.fromkeys(Line, cohort.rows)
    dataset = cohort.dataset
    return {line: [dataset.patient_ids[number] for number in np.unique(dataset.patients[chosen])] for line, chosen in rows.items()}


@lru_cache(maxsize=2)
def _opened(folder: str) -> Dataset:
    """A data set, opened once for all the sites of a process that share it; it never changes on disk."""
    return open_dataset(Path(folder))


def _joined(folder: Path, home: str) -> Path:
    return folder if home == "." else (folder / home).resolve()


def home_of(folder: Path) -> Path:
    """The home of the site that `folder` belongs to: the folder itself, or the one that its `site.json` names. Raises DataError."""
    if not (folder / SITE_FILE).exists() and (folder / CONFIG_FILE).exists():
        return folder
    return _joined(folder, SiteFile.read(folder).home)


def ledger_path(home: Path) -> Path:
    """The privacy ledger of the site with that home."""
    return home / "ledger.sqlite"


def key_path(home: Path) -> Path:
    """The site's secret key; it never leaves and belongs into the backup."""
    return home / "site.key"


def receipts_path(home: Path) -> Path:
    """The coordinator's receipts for the ledger; not in the same backup, so that an old ledger is seen to be old."""
    return home / "receipts.jsonl"


def open_ledger(folder: Path) -> Ledger:
    """The ledger of the site that `folder` belongs to. Raises DataError, StorageError when settings or key cannot be read."""
    home = home_of(folder)
    secret = Secret.read(key_path(home))
    receipts = ReceiptFile(receipts_path(home), secret, coordinator_keys(home))
    return Ledger(ledger_path(home), secret, receipts, SiteWitness(home, secret))


def coordinator_keys(home: Path) -> frozenset[str]:
    """The keys of receipts that any study of the site was approved with: one coordinator has one, until it changes it."""
    found = (
        SiteFile.read(path.parent).coordinator_key for path in (home / SITE_FILE, *home.glob(f"studies/*/{SITE_FILE}")) if path.exists()
    )
    return frozenset(key for key in found if key is not None)


def ledger_settings(folder: Path) -> tuple[str, float | None]:
    """Name of the site that `folder` belongs to, and the most ε that an account may spend (None: each study's own).

    Raises DataError, InputError when settings cannot be read.
    """
    if not (folder / SITE_FILE).exists() and (folder / CONFIG_FILE).exists():
        from client.site_config import SiteConfig

        config = SiteConfig.read(folder / CONFIG_FILE)
        return config.name, config.limits.epsilon_per_account
    settings = SiteFile.read(folder)
    return settings.name, settings.epsilon_cap


def figures_path(home: Path) -> Path:
    """Exact ε that was shown before (`client.figures`)."""
    return home / "figures.json"


def journal_path(home: Path) -> Path:
    """The site's own record of its rounds; it never leaves."""
    return home / "rounds.jsonl"


def log_path(home: Path) -> Path:
    """The site's own log of failures with their causes; it never leaves."""
    return home / "site.log"


def evaluation_path(folder: Path, after_round: int) -> Path:
    """Scores of the global model after so many rounds on the site's held-out images; they never leave."""
    return folder / "evaluations" / f"after-round-{after_round:05d}.npz"


def write_site(folder: Path, facts: SiteFile, cohort: Cohort) -> None:
    """Write a site's folder; the cohort's images stay in the data set's folder, `facts.dataset`. A key that is there stays."""
    folder.mkdir(parents=True, exist_ok=True)
    Secret.ensure(key_path(_joined(folder, facts.home)))
    np.save(folder / facts.rows, cohort.rows)
    np.save(folder / facts.split, cohort.split)
    write_atomic(folder / SITE_FILE, facts.model_dump_json(indent=1))


SiteSource: TypeAlias = "Callable[[Context], Path]"


def site_from_context(context: Context) -> Path:
    """The folder that the node itself names in its context (`site-folder`, at a hospital), else the one in the table."""
    folder = context.node_config.get(SITE_FOLDER_KEY)
    return Path(folder) if isinstance(folder, str) else site_from_table(context)


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
