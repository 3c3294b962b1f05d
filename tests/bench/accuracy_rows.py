# SPDX-License-Identifier: Apache-2.0
"""What `make bench-accuracy` measures: one row for each configuration, with the figure that is asked of it.

A row is a shipped study with named changes, a data set and a partition. A job is a row with one seed. A job's folder is named by all
settings of the row, so the result of one is never taken for another's and a finished one is never computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from common.study import Study
from common.study_file import load_study
from simulations.options import find_study

SITES = 4
SEEDS = (0, 1, 2, 3, 4)
KERMANY = "kermany_cxr/kermany_cxr_64.npz"
PNEUMONIAMNIST = "medmnist/pneumoniamnist.npz"
SKEWED = "dirichlet:0.3"
EACH_STEP: Mapping[str, Any] = {"training.local_steps": 1, "federation.rounds": 200}
"""As many steps, but an exchange after each of them: with skewed sites two steps a round lose accuracy."""

NO_PRIVACY: Mapping[str, Any] = {"privacy": "none"}
ADAM: Mapping[str, Any] = {"training.optimiser": "adam", "training.learning_rate": 0.03, "training.local_steps": 4}
"""Without privacy the hard case needs more steps and a faster optimiser than its private recipe."""


@dataclass(frozen=True)
class Row:
    """One line of the table. `required` and `stretch` are of the mean AUROC, `required_each` of every seed; None asks for nothing.

    With the first `baseline_seeds` seeds each site alone and all data in one place are trained as well, which takes three times as long.
    `changes` has dotted keys of the study.
    """

    name: str
    title: str
    study: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    data: str = KERMANY
    partition: str = "iid"
    required: float | None = None
    required_each: float | None = None
    stretch: float | None = None
    baseline_seeds: int = 0

    def study_of(self, seed: int) -> Study:
        """The study that is run. Raises StudyError, ValueError."""
        return _shipped(self.study).with_changes({**self.changes, "seed": seed})


@lru_cache(maxsize=32)
def _shipped(name: str) -> Study:
    return load_study(find_study(name))


@dataclass(frozen=True)
class Job:
    """One run: a row with one seed."""

    row: Row
    seed: int

    @property
    def baselines(self) -> bool:
        """Whether the baselines are trained as well."""
        return self.seed in SEEDS[: self.row.baseline_seeds]

    @property
    def folder(self) -> Path:
        """Where its run lies, relative to the folder of results: row, seed, and a digest of all that the row decides.

        Settings left at their defaults are not in the digest: a new one does not throw all results away.
        """
        settings = self.row.study_of(self.seed).model_dump(mode="json", exclude_defaults=True)
        facts = [settings, self.row.data, self.row.partition, SITES, self.baselines]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return Path(self.row.name) / f"seed-{self.seed}-{digest[:12]}"

    def is_done(self, out: Path) -> bool:
        """Whether its result is there; a run writes it last."""
        return (out / self.folder / "results.json").exists()


ROWS = (
    Row(
        "scattering-e3",
        "scattering, ε = 3",
        "chest-xray-scattering",
        required=0.990,
        required_each=0.987,
        baseline_seeds=2,
    ),
    Row(
        "scattering-e1",
        "scattering, ε = 1",
        "chest-xray-scattering-strict",
        required=0.982,
        baseline_seeds=2,
    ),
    Row("scattering-none", "scattering, no privacy", "chest-xray-scattering", NO_PRIVACY),
    Row(
        "scattering-skewed-e3",
        "scattering, ε = 3, skewed sites",
        "chest-xray-scattering",
        EACH_STEP,
        partition=SKEWED,
        required=0.988,
    ),
    Row(
        "scattering-skewed-e1",
        "scattering, ε = 1, skewed sites",
        "chest-xray-scattering-strict",
        partition=SKEWED,
        required=0.980,
    ),
    Row(
        "scattering-skewed-none",
        "scattering, no privacy, skewed sites",
        "chest-xray-scattering",
        {**NO_PRIVACY, **EACH_STEP},
        partition=SKEWED,
    ),
    Row("cnn-e3", "cnn from scratch, ε = 3", "chest-xray-private", required=0.970, stretch=0.980, baseline_seeds=2),
    Row("cnn-e1", "cnn from scratch, ε = 1", "chest-xray-private-strict", required=0.92, stretch=0.96),
    Row("cnn-none", "cnn from scratch, no privacy", "chest-xray"),
    Row("bacterial-e3", "bacterial or viral, scattering, ε = 3", "chest-xray-bacterial", required=0.66),
    Row("bacterial-none", "bacterial or viral, scattering, no privacy", "chest-xray-bacterial", {**NO_PRIVACY, **ADAM}, required=0.73),
    Row("pneumoniamnist-e3", "PneumoniaMNIST, scattering, ε = 3 for one image", "pneumoniamnist", data=PNEUMONIAMNIST, required=0.955),
    Row("pneumoniamnist-none", "PneumoniaMNIST, scattering, no privacy", "pneumoniamnist", NO_PRIVACY, data=PNEUMONIAMNIST),
)


def rows_named(names: Sequence[str]) -> tuple[Row, ...]:
    """The rows of these names in the table's order; no name means all. Raises ValueError naming what does not exist."""
    known = {row.name: row for row in ROWS}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no such row: {', '.join(unknown)}; there are {', '.join(known)}")
    return tuple(row for row in ROWS if not names or row.name in names)


def jobs_of(rows: Iterable[Row], seeds: Sequence[int]) -> Iterator[Job]:
    """All jobs, row by row."""
    return (Job(row, seed) for row in rows for seed in seeds)
