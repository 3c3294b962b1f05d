# SPDX-License-Identifier: Apache-2.0
"""The report of one run: a single HTML file that a reader understands in five minutes.

Everything in it comes from a `RunResult`; nothing is loaded from anywhere. What is computed here (intervals, patient-level AUROC,
means over sites) follows from the scores that the result carries. `write_comparison` is the same for several runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common.study import Study
from simulations import plots
from simulations.comparison import write_comparison
from simulations.pages import DASH, number, write_page, yaml_text
from simulations.results import Example, ModelResult, RunResult, Scores
from simulations.tables import Column, best_alone, headline, metric_rows, shortcut_remarks, site_rows, split_count, worst_epsilon
from simulations.trivial import BORDER, COARSE, ONE_FEATURE

__all__ = ["write_comparison", "write_report"]

MAX_SITE_ROWS = 60
MAX_MEASURED_ROWS = 12
MAX_ALONE_CURVES = 20
MAX_EXAMPLES = 24
MAX_EXAMPLE_CHARACTERS = 400_000
TRIVIAL_READING = {
    COARSE: "A logistic regression on 64 grey squares.",
    BORDER: "A logistic regression on the frame, one sixteenth of the image wide; what lies inside is left out.",
    ONE_FEATURE: "The one feature of the table that tells the training rows apart best, read as it is.",
}


@dataclass(frozen=True)
class Shown:
    """An example and whether the model was wrong about it."""

    example: Example
    wrong: bool


def write_report(result: RunResult, path: Path) -> Path:
    """Write the report of `result` to `path` and return it.

    One HTML file under a megabyte, no script, no reference to anything outside. Raises StorageError when it cannot be written.
    """
    study = Study.model_validate(result.study)
    columns = headline(result)
    context: dict[str, object] = {"result": result, "study": study, "columns": columns, "settings": yaml_text(result.study), "dash": DASH}
    context |= _numbers(result, columns, study) | _sites(result) | _privacy(result) | _measured(result)
    context |= {"figures": figures(result, columns), "line_names": _line_names(result), "dashes": plots.DASHES, "examples": _shown(result)}
    return write_page(path, "report.html", context)


def figures(result: RunResult, columns: Sequence[Column]) -> dict[str, str]:
    """The figures that this result has data for, as inline SVG by name."""
    judged = list(_judged(result))
    marks = _marks(result, columns)
    words = ", ".join(f"{mark.name} {number(mark.value)}" for mark in marks)
    drawn = {
        "roc": plots.roc(judged, f"ROC curves of the models. AUROC: {words}."),
        "reliability": plots.reliability(judged, "Observed share of cases against promised probability, for each model."),
    }
    if marks:
        drawn["glance"] = plots.glance(marks, f"AUROC on held-out patients: {words}.")
    return drawn | _curve_figures(result, columns)


def _numbers(result: RunResult, columns: Sequence[Column], study: Study) -> dict[str, object]:
    test = result.federated.test
    rows = metric_rows(columns, study)
    return {
        "metric_rows": rows,
        "unmeasured": any(value is None and columns[index].metrics for row in rows for index, value in enumerate(row.values)),
        "remarks": shortcut_remarks(result),
        "held_out_images": len(test.labels),
        "unit": "row" if study.data.kind == "tabular" else "image",
        "held_out_patients": len(set(test.patients)),
        "case_share": _case_share(test),
        "trivial_reading": TRIVIAL_READING,
    }


def _sites(result: RunResult) -> dict[str, object]:
    return {
        "site_rows": site_rows(result)[:MAX_SITE_ROWS],
        "data_rows": result.sites[:MAX_SITE_ROWS],
        "hidden_sites": max(0, len(result.sites) - MAX_SITE_ROWS),
        "most_patients": max([split_count(site.patients, "train") for site in result.sites], default=0) or 1,
        "split_count": split_count,
    }


def _privacy(result: RunResult) -> dict[str, object]:
    worst = worst_epsilon(result)
    return {"worst_epsilon": worst, "odds": _odds(worst)}


def _measured(result: RunResult) -> dict[str, object]:
    """The private evaluations, the newest last."""
    spent = [site.held_out_epsilon for site in result.sites if site.held_out_epsilon is not None]
    return {
        "measured_rows": result.measured[-MAX_MEASURED_ROWS:],
        "hidden_measured": max(0, len(result.measured) - MAX_MEASURED_ROWS),
        "held_out_epsilon": max(spent, default=None),
    }


def _odds(epsilon: float | None) -> str:
    """e to the ε in a form for people."""
    if epsilon is None or epsilon > math.log(1e6):
        return DASH if epsilon is None else "more than a million"
    odds = math.exp(epsilon)
    return f"{odds:.1f}" if odds < 10 else f"{odds:,.0f}"


def _case_share(test: Scores) -> float | None:
    """Share of label 1 in a binary task; None for several classes."""
    return None if not test.labels or isinstance(test.scores[0], list) else float(np.mean(test.labels))


def _shown(result: RunResult) -> list[Shown]:
    """As many examples as keep the file small."""
    sizes = np.cumsum([len(example.png) for example in result.examples])
    fitting = [example for example, size in zip(result.examples, sizes, strict=True) if size <= MAX_EXAMPLE_CHARACTERS]
    return [Shown(example, example.label != example.prediction) for example in fitting[:MAX_EXAMPLES]]


def _marks(result: RunResult, columns: Sequence[Column]) -> list[plots.Mark]:
    models = [(column, column.metrics.get("auroc")) for column in columns if column.metrics]
    marks = [plots.Mark(column.title, value, column.interval, column.role) for column, value in models if value is not None]
    return marks + [
        plots.Mark(name[:1].upper() + name[1:], value, None, "trivial") for name, value in result.trivial.items() if value is not None
    ]


def _judged(result: RunResult) -> Iterator[plots.Judged]:
    """Models for the ROC and reliability figures, the important ones last (on top)."""
    best = best_alone(result)
    others = [model for name, model in result.alone.items() if name != best]
    yield from (_as_judged(model, "alone") for model in others[:MAX_ALONE_CURVES])
    if best:
        yield _as_judged(result.alone[best], "best")
    if result.pooled:
        yield _as_judged(result.pooled, "pooled")
    yield _as_judged(result.federated, "federated")


def _as_judged(model: ModelResult, role: str) -> plots.Judged:
    return plots.Judged(np.asarray(model.test.labels, dtype=np.int64), np.asarray(model.test.scores, dtype=np.float64), role)


def _curve_figures(result: RunResult, columns: Sequence[Column]) -> dict[str, str]:
    drawn = {}
    auroc = _series({point.round: point.auroc for point in result.curve})
    if len(auroc) > 1:
        levels = [(value, column.role) for column in columns if column.role in ("pooled", "best") and (value := _auroc(column)) is not None]
        alt = _range_alt("AUROC of the federated model", auroc)
        drawn["auroc"] = plots.curves([plots.Line(auroc, "federated")], levels, "AUROC", alt, "auroc")
    if any(point.loss for point in result.curve):
        drawn["loss"] = plots.curves(_loss_lines(result), [], "training loss", "Mean training loss of each site, by round.", "loss")
    spent = _series({point.round: max(point.epsilon.values(), default=None) for point in result.curve})
    if len(spent) > 1 and result.privacy:
        target = [(result.privacy.epsilon_target, "best")]
        alt = _range_alt("Upper bound of ε", spent)
        drawn["epsilon"] = plots.curves([plots.Line(spent, "federated")], target, "ε so far (upper bound)", alt, "epsilon")
    return drawn


def _auroc(column: Column) -> float | None:
    return (column.metrics or {}).get("auroc")


def _series(by_round: Mapping[int, float | None]) -> list[tuple[float, float]]:
    return [(float(index), value) for index, value in by_round.items() if value is not None]


def _line_names(result: RunResult) -> list[str]:
    """Sites whose loss is drawn as a line of its own; empty when there are too many to tell apart."""
    names = [site.name for site in result.sites if any(site.name in point.loss for point in result.curve)]
    return names if len(names) <= plots.MAX_NAMED_LINES else []


def _loss_lines(result: RunResult) -> list[plots.Line]:
    named = _line_names(result)
    names = named or [site.name for site in result.sites]
    series = [_series({point.round: point.loss.get(name) for point in result.curve}) for name in names]
    if named:
        return [plots.Line(points, "alone", index) for index, points in enumerate(series)]
    middle = {point.round: float(np.median(list(point.loss.values()))) for point in result.curve if point.loss}
    return [*(plots.Line(points) for points in series), plots.Line(_series(middle), "federated")]


def _range_alt(what: str, points: plots.Points) -> str:
    first, last = points[0], points[-1]
    return f"{what}: {first[1]:.3f} in round {first[0]:.0f}, {last[1]:.3f} in round {last[0]:.0f}."
