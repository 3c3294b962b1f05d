# SPDX-License-Identifier: Apache-2.0
"""Several finished runs side by side: finds them, writes one report, and gives the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.errors import InputError
from simulations.layout import RunLayout
from simulations.results import RunResult
from simulations.summary import AUROC_LABELS, aurocs, shown


def compare_runs(folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Write the report `out` of all runs in `folders` and return their numbers. Raises InputError with every folder that is no run."""
    from simulations.report import write_comparison

    results, problems = [], []
    for folder in folders:
        found = _result_files(folder)
        if not found:
            problems.append(f"{folder}: no finished run is here; give the folder that `run` named, or finish it with --resume {folder}")
        for file in found:
            try:
                results.append((file.parent, RunResult.read(file)))
            except (ValidationError, OSError) as error:
                problems.append(f"{file}: is damaged or from another version ({type(error).__name__}); run that study again")
    if problems:
        raise InputError(problems)
    write_comparison([result for _, result in results], out)
    return {"report": str(out), "runs": [_facts(folder, result) for folder, result in results]}


def print_comparison(comparison: dict[str, Any], console: Console) -> None:
    """One row for each run."""
    table = Table(title="AUROC on held-out patients", title_justify="left")
    table.add_column("run", overflow="fold")
    for heading in ("ε", *AUROC_LABELS.values()):
        table.add_column(heading, justify="right")
    for run in comparison["runs"]:
        epsilon = "none" if run["epsilon_target"] is None else f"{run['epsilon_target']:g}"
        table.add_row(Text(Path(run["run_dir"]).name), epsilon, *(shown(run["auroc"][name]) for name in AUROC_LABELS))
    console.print(table)
    console.print(Text(f"report: {comparison['report']}"), soft_wrap=True)


def _result_files(folder: Path) -> list[Path]:
    """The result of a run, or those of its seeds one level below."""
    own = RunLayout(folder).results
    return [own] if own.is_file() else sorted(folder.glob(f"*/{own.name}"))


def _facts(folder: Path, result: RunResult) -> dict[str, Any]:
    return {
        "run_dir": str(folder),
        "study_id": result.study_id,
        "seed": result.seed,
        "auroc": aurocs(result),
        "epsilon_target": result.privacy.epsilon_target if result.privacy else None,
    }
