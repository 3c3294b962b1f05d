# SPDX-License-Identifier: Apache-2.0
"""The end of a run in numbers: one JSON object for machines, one table for people, from the same facts.

With several seeds the AUROC values are means and `auroc_sd` is the sample standard deviation; ε is of one run, the largest of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from simulations.options import RunOutcome
from simulations.results import ModelResult, RunResult

AUROC_LABELS = {
    "pooled": "all data in one place",
    "best_site": "best site alone",
    "mean_site": "mean site alone",
    "federated": "federated",
}
NOT_MEASURABLE = "not measurable"
Numbers = dict[str, float | None]


def aurocs(result: RunResult) -> Numbers:
    """AUROC on the held-out patients of all sites together; None where there is no such model or it cannot be measured."""
    alone = _measured(_auroc(model) for model in result.alone.values())
    return {
        "pooled": _auroc(result.pooled),
        "best_site": max(alone, default=None),
        "mean_site": statistics.fmean(alone) if alone else None,
        "federated": _auroc(result.federated),
    }


def private_auroc(result: RunResult | None) -> dict[str, float] | str | None:
    """The privately measured AUROC of the final model with its standard error, `NOT_MEASURABLE`, or None if it was not measured.

    It is by patient and may lie above 1 by chance.
    """
    if result is None or not result.measured:
        return None
    last = result.measured[-1]
    if last.auroc is None or last.standard_error is None:
        return NOT_MEASURABLE
    return {"value": last.auroc, "standard_error": last.standard_error}


def run_summary(outcomes: Sequence[RunOutcome], run_dir: Path) -> dict[str, Any]:
    """The object that `run --json` prints; `run_dir` is the folder that holds all of them."""
    if len(outcomes) == 1:
        return _one(outcomes[0])
    runs = [_one(outcome) for outcome in outcomes]
    report = run_dir / "report.html"
    return {
        **runs[0],
        "run_dir": str(run_dir),
        "report": str(report) if report.exists() else runs[0]["report"],
        "auroc": {
            **_across(runs, lambda values: statistics.fmean(values) if values else None),
            "private": _mean_private([run["auroc"]["private"] for run in runs]),
        },
        "auroc_sd": _across(runs, lambda values: statistics.stdev(values) if len(values) > 1 else None),
        "epsilon": _largest([run["epsilon"] for run in runs]),
        "epsilon_held_out": _largest([run["epsilon_held_out"] for run in runs]),
        "seconds": sum(run["seconds"] for run in runs),
        "runs": runs,
    }


def print_summary(summary: dict[str, Any], outcomes: Sequence[RunOutcome], console: Console) -> None:
    """The table at the end of a run, and where the report is."""
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    if results:
        console.print(_table(summary, results[0]))
        for note in _notes(summary, results[0]):
            console.print(Text(note))
    console.print(Text(f"report: {summary['report']}"), soft_wrap=True)


def shown(value: float | None, deviation: float | None = None) -> str:
    """An AUROC with three digits, with its standard deviation where there is one."""
    if value is None:
        return NOT_MEASURABLE
    return f"{value:.3f}" if deviation is None else f"{value:.3f} ± {deviation:.3f}"


def _one(outcome: RunOutcome) -> dict[str, Any]:
    result = outcome.result
    return {
        "study_id": result.study_id if result else None,
        "run_dir": str(outcome.run_dir),
        "report": str(outcome.report),
        "sites": len(result.sites) if result else None,
        "rounds": result.rounds if result else None,
        "auroc": {**(aurocs(result) if result else dict.fromkeys(AUROC_LABELS)), "private": private_auroc(result)},
        "epsilon": {site.name: site.epsilon for site in result.sites} if result else {},
        "epsilon_held_out": {site.name: site.held_out_epsilon for site in result.sites} if result else {},
        "epsilon_target": result.privacy.epsilon_target if result and result.privacy else None,
        "seconds": result.seconds if result else 0.0,
    }


def _auroc(model: ModelResult | None) -> float | None:
    return model.metrics.get("auroc") if model else None


def _measured(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _across(runs: list[dict[str, Any]], combine: Callable[[list[float]], float | None]) -> Numbers:
    return {name: combine(_measured(run["auroc"][name] for run in runs)) for name in AUROC_LABELS}


def _mean_private(found: Sequence[dict[str, float] | str | None]) -> dict[str, float] | str | None:
    """Mean over the runs that could be measured; the standard error stays that of one run, because runs share their patients."""
    measured = [each for each in found if isinstance(each, dict)]
    if not measured:
        return NOT_MEASURABLE if NOT_MEASURABLE in found else None
    return {key: statistics.fmean(each[key] for each in measured) for key in ("value", "standard_error")}


def _largest(spent: list[Numbers]) -> Numbers:
    names = dict.fromkeys(name for run in spent for name in run)
    return {name: max(_measured(run.get(name) for run in spent), default=None) for name in names}


def _table(summary: dict[str, Any], result: RunResult) -> Table:
    images = "synthetic images" if result.synthetic else "exact, simulation only"
    table = Table(title=Text(f"AUROC on held-out patients of all sites ({images})"), title_justify="left")
    table.add_column("trained on")
    table.add_column("AUROC", justify="right")
    deviations = summary.get("auroc_sd", {})
    for name, label in AUROC_LABELS.items():
        style = "bold" if name == "federated" else ""
        table.add_row(label, shown(summary["auroc"][name], deviations.get(name)), style=style)
    return table


def _private_notes(summary: dict[str, Any]) -> list[str]:
    """What the hospitals would learn of the final model, and what it costs the held-out patients."""
    private, spent = summary["auroc"]["private"], _measured(summary["epsilon_held_out"].values())
    if private is None:
        return []
    told = private if isinstance(private, str) else f"{private['value']:.3f}, standard error {private['standard_error']:.3f}"
    cost = f" (held-out patients spend ε {max(spent):.2f})" if spent else ""
    return [f"AUROC by patient as hospitals would measure it, from noisy histograms{cost}: {told}"]


def _notes(summary: dict[str, Any], result: RunResult) -> list[str]:
    notes = []
    if result.privacy is None:
        notes.append("NO PRIVACY: these models may reveal the patients they were trained on.")
    else:
        spent = ", ".join(f"{name} {value:.2f}" for name, value in summary["epsilon"].items() if value is not None)
        notes.append(f"ε spent per patient, at most {result.privacy.epsilon_target:g} (δ = {result.privacy.delta:g}): {spent}")
    notes += _private_notes(summary)
    if "runs" in summary:
        notes.append(f"Mean ± standard deviation of {len(summary['runs'])} runs. ε is for one run; the report has the composed ε of all.")
    if result.synthetic:
        notes.append("Synthetic images: the numbers show that the machinery works, no more.")
    return notes
