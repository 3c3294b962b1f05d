# SPDX-License-Identifier: Apache-2.0
"""What `make bench-heart` measures: levels of privacy, each on FLamby's split with many seeds and on many random splits."""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from common.study import Study
from common.study_file import load_study
from simulations.options import find_study
from simulations.results import ModelResult, RunResult
from tests.bench.heart_data import FLAMBY_SEED

RUNS = 20
BASELINE_RUNS = 5
Protocol = Literal["flamby", "random"]
PROTOCOLS: tuple[Protocol, ...] = ("flamby", "random")


@dataclass(frozen=True, eq=False)
class Level:
    """A level of privacy: a shipped study with changes by dotted key. `required` is of the mean accuracy, by protocol."""

    name: str
    title: str
    study: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    required: Mapping[str, float] = field(default_factory=dict)


LEVELS = (
    Level("none", "no privacy", "heart-disease", {"privacy": "none"}),
    Level("e8", "ε = 8", "heart-disease", {"privacy.epsilon": 8}),
    Level("e3", "ε = 3", "heart-disease"),
    Level("e1", "ε = 1", "heart-disease-strict", required={"flamby": 0.80, "random": 0.79}),
)


@lru_cache(maxsize=8)
def _shipped(name: str) -> Study:
    return load_study(find_study(name))


@dataclass(frozen=True)
class Job:
    """One run. `number` is the seed on FLamby's split, or names a random split (and is the seed too)."""

    level: Level
    protocol: Protocol
    number: int

    @property
    def split_seed(self) -> int:
        """Seed of the split."""
        return FLAMBY_SEED if self.protocol == "flamby" else self.number

    @property
    def baselines(self) -> bool:
        """Whether each site alone and all in one place are trained as well: for the first few, because they take longer."""
        return self.number < BASELINE_RUNS

    @property
    def study(self) -> Study:
        """The study that is run: the shipped one, with the split of the files."""
        shipped = _shipped(self.level.study)
        names = [*shipped.data.column_names, "split"]
        return shipped.with_changes({**self.level.changes, "seed": self.number, "data.column_names": names, "data.split_column": "split"})

    @property
    def folder(self) -> Path:
        """Where its run lies: named by all of its settings, so a result is never taken for another's."""
        facts = [self.study.model_dump(mode="json", exclude_defaults=True), self.split_seed, self.baselines]
        digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return Path(self.level.name) / f"{self.protocol}-{self.number}-{digest[:12]}"

    def is_done(self, out: Path) -> bool:
        """Whether its result is there; a run writes it last."""
        return (out / self.folder / "results.json").exists()


def jobs(levels: Sequence[str], runs: int) -> Iterator[Job]:
    """All jobs of the named levels (none: all). Raises ValueError for a name that does not exist.

    Without privacy nothing is random on a fixed split: weights start at zero and each step takes every patient. One run is all of them.
    """
    unknown = set(levels) - {level.name for level in LEVELS}
    if unknown:
        raise ValueError(f"no such level: {', '.join(sorted(unknown))}; there are {', '.join(level.name for level in LEVELS)}")
    for level in (level for level in LEVELS if not levels or level.name in levels):
        for protocol in PROTOCOLS:
            for number in range(1 if level.name == "none" and protocol == "flamby" else runs):
                yield Job(level, protocol, number)


@dataclass(frozen=True)
class Finding:
    """One run in numbers: accuracy at threshold .5. `mean` is over the sites' own held-out patients, each site counting the same.

    `pooled` is over all held-out patients; `alone` and `together` are the means over sites of models that one site, or all data in one
    place, trained under the same privacy for its own patients.
    """

    mean: float
    pooled: float
    by_site: Mapping[str, float]
    alone: Mapping[str, float]
    together: float | None
    epsilon: float | None


def finding_of(result: RunResult) -> Finding:
    """A run in numbers. Raises ValueError when a site has no held-out patients."""
    by_site = {site.name: _accuracy(result.federated.per_site[site.name]) for site in result.sites}
    spent = [site.epsilon for site in result.sites if site.epsilon is not None]
    return Finding(
        mean=statistics.fmean(by_site.values()),
        pooled=_accuracy(result.federated.metrics),
        by_site=by_site,
        alone={name: _over_sites(model) for name, model in result.alone.items()},
        together=_over_sites(result.pooled) if result.pooled else None,
        epsilon=max(spent, default=None),
    )


def _over_sites(model: ModelResult) -> float:
    return statistics.fmean(_accuracy(metrics) for metrics in model.per_site.values())


def _accuracy(metrics: Mapping[str, float | None]) -> float:
    value = metrics.get("accuracy")
    if value is None:
        raise ValueError("no accuracy was measured: a site has no held-out patients; check the split")
    return value
