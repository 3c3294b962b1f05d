# SPDX-License-Identifier: Apache-2.0
"""One page for several runs: seeds of one study side by side (mean ± sd), different studies below each other.

Runs that differ only by their seed are one group. Where private runs used the same patients, the page prints the composed ε: each
run's own ε is for that run alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.errors import InputError
from common.metrics import mean_and_sd
from simulations import plots
from simulations.composition import compositions, is_private
from simulations.pages import plus_minus, write_page
from simulations.results import ModelResult, RunResult
from simulations.tables import best_alone, worst_epsilon

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
METRICS = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1", "calibration_error": "Calibration error"}
IGNORED_KEYS = ("seed",)
QUIET_KEYS = ("name", "description")


@dataclass(frozen=True)
class Group:
    """Runs that differ only by their seed."""

    letter: str
    runs: tuple[RunResult, ...]
    differs: Mapping[str, str]  # settings in which the groups differ, by dotted name

    @property
    def name(self) -> str:
        """The study's name."""
        return str(self.runs[0].study.get("name", "study"))

    @property
    def worst_epsilon(self) -> float | None:
        """The largest ε of a site in a single run; None without privacy."""
        return max([value for run in self.runs if (value := worst_epsilon(run)) is not None], default=None)

    @property
    def private(self) -> bool:
        """Whether the group's study is private."""
        return is_private(self.runs[0])

    def federated(self, metric: str) -> str:
        """Mean ± sd of a metric of the federated model."""
        return spread(run.federated.metrics.get(metric) for run in self.runs)

    def model(self, which: str) -> str:
        """Mean ± sd of the AUROC of `pooled`, `best` or `mean` (of the sites alone)."""
        return spread(_auroc(run, which) for run in self.runs)


def write_comparison(results: list[RunResult], path: Path) -> Path:
    """Write one page about several runs to `path` and return it.

    Raises InputError for no run, or a run that is given twice (it would count as another seed).
    """
    _check(results)
    groups = grouped(results)
    context: dict[str, object] = {
        "groups": groups,
        "metrics": METRICS,
        "several_seeds": any(len(group.runs) > 1 for group in groups),
        "differing": list(dict.fromkeys(key for group in groups for key in group.differs)),
        "synthetic": [group.letter for group in groups if any(run.synthetic for run in group.runs)],
        "unprotected": [group.letter for group in groups if not group.private],
        "same_test": len({_test_key(run) for run in results}) == 1,
        "compositions": compositions(results),
        "figures": _figures(groups),
        "dashes": plots.DASHES,
        "run_count": len(results),
        "epsilon_of": worst_epsilon,
        "is_private": is_private,
    }
    return write_page(path, "compare.html", context)


def grouped(results: Sequence[RunResult]) -> list[Group]:
    """Groups in the order in which their first run was given."""
    found: dict[str, list[RunResult]] = {}
    for result in results:
        found.setdefault(_group_key(result), []).append(result)
    settings = [_flat(_identity(runs[0])) for runs in found.values()]
    keys = [key for key in dict.fromkeys(key for each in settings for key in each) if len({each.get(key) for each in settings}) > 1]
    shown = [key for key in keys if key not in QUIET_KEYS]
    pairs = zip(found.values(), settings, strict=True)
    return [Group(_letter(index), tuple(runs), {key: each.get(key, "–") for key in shown}) for index, (runs, each) in enumerate(pairs)]


def spread(values: Iterable[float | None]) -> str:
    """`0.9926 ± 0.0016`, with `(2 of 3)` when it could not be measured in every run."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    text = plus_minus(*mean_and_sd(known))
    return text if len(known) in (0, len(listed)) else f"{text} ({len(known)} of {len(listed)})"


def _check(results: Sequence[RunResult]) -> None:
    if not results:
        raise InputError("compare: no run was given; name at least one run directory")
    twice = {result.run_id for index, result in enumerate(results) if result in results[:index]}
    if twice:
        raise InputError([f"compare: run {run_id} is given twice; give each run once" for run_id in sorted(twice)])


def _auroc(run: RunResult, which: str) -> float | None:
    if which == "mean":
        return mean_and_sd(model.metrics.get("auroc") for model in run.alone.values())[0]
    best = best_alone(run)
    model: ModelResult | None = run.pooled if which == "pooled" else run.alone[best] if best else None
    return model.metrics.get("auroc") if model else None


def _identity(result: RunResult) -> dict[str, object]:
    """What makes two runs the same but for the seed."""
    study = {key: value for key, value in result.study.items() if key not in IGNORED_KEYS}
    return study | {"source": result.source, "partition": result.partition, "sites": len(result.sites)}


def _group_key(result: RunResult) -> str:
    return json.dumps(_identity(result), sort_keys=True)


def _flat(value: object, prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and text."""
    if isinstance(value, Mapping) and value:
        parts = [_flat(item, f"{prefix}.{key}" if prefix else str(key)) for key, item in value.items()]
        return {key: text for part in parts for key, text in part.items()}
    return {prefix: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}


def _letter(index: int) -> str:
    return LETTERS[index] if index < len(LETTERS) else f"{LETTERS[index // len(LETTERS) - 1]}{LETTERS[index % len(LETTERS)]}"


def _test_key(run: RunResult) -> tuple[object, ...]:
    return (run.data_digest or run.source, tuple(sorted(run.federated.test.rows)))


def _figures(groups: Sequence[Group]) -> dict[str, str]:
    rows = [(group.letter, _known(group, "federated"), mean_and_sd(_known(group, "pooled"))[0]) for group in groups]
    drawn = {}
    if any(values for _, values, _ in rows):
        words = "; ".join(f"{group.letter}: {group.federated('auroc')}" for group in groups)
        drawn["dots"] = plots.seed_dots(rows, f"AUROC of the federated models by group. {words}.")
    lines = [plots.Line(_mean_curve(group), "group", index) for index, group in enumerate(groups) if _mean_curve(group)]
    if lines and len(groups) <= plots.MAX_NAMED_LINES:
        drawn["curves"] = plots.curves(lines, [], "AUROC", "AUROC of the federated model by round, mean of each group.", "curves")
    return drawn


def _known(group: Group, which: str) -> list[float]:
    values = [run.federated.metrics.get("auroc") if which == "federated" else _auroc(run, which) for run in group.runs]
    return [value for value in values if value is not None]


def _mean_curve(group: Group) -> list[tuple[float, float]]:
    by_round: dict[int, list[float]] = {}
    for point in (point for run in group.runs for point in run.curve):
        if point.auroc is not None:
            by_round.setdefault(point.round, []).append(point.auroc)
    return [(float(index), float(np.mean(values))) for index, values in sorted(by_round.items())]
