# SPDX-License-Identifier: Apache-2.0
"""The numbers of the report, as rows and columns that a template only has to print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from common.metrics import Metrics, auroc_interval, mean_and_sd, metrics_of, patient_scores
from common.study import Study
from simulations.pages import number
from simulations.results import ModelResult, RunResult, SiteResult
from simulations.trivial import BORDER, COARSE

SHORTCUT_AUROC = 0.7
SMALL_GAIN = 0.01


@dataclass(frozen=True)
class Column:
    """One model of the headline table."""

    title: str
    role: str
    metrics: Metrics | None  # None: not trained in this run
    interval: tuple[float, float] | None = None
    detail: str = ""


@dataclass(frozen=True)
class MetricRow:
    """One metric of the headline table, with how to read it."""

    key: str
    title: str
    reading: str
    values: list[float | None]


@dataclass(frozen=True)
class SiteRow:
    """The models on one site's held-out patients, by AUROC."""

    name: str
    patients: int
    images: int
    federated: float | None
    alone: float | None
    pooled: float | None

    @property
    def gain(self) -> float | None:
        """How much the site wins by taking part."""
        return None if self.federated is None or self.alone is None else self.federated - self.alone


READINGS: dict[str, tuple[str, str]] = {
    "auroc": ("AUROC", "Chance that an image with the finding scores above one without. 0.5 is a coin, 1 is perfect."),
    "auroc_patient": ("AUROC by patient", "The same with one score a patient: the mean over their images."),
    "auprc": ("AUPRC", "Share of alarms that are right, averaged over all thresholds. A model that guesses gets the share of cases."),
    "f1": ("F1", "Balance of found cases and right alarms at threshold 0.5."),
    "accuracy": ("Accuracy", "Share of images whose most probable class is the right one."),
    "sensitivity": ("Sensitivity", "Share of the cases that are found, at threshold 0.5."),
    "specificity": ("Specificity", "Share of the others that raise no alarm, at threshold 0.5."),
    "calibration_error": (
        "Calibration error",
        "Mean gap between promised and observed frequency: 0.05 means a “70 %” is off by 5 points. 0 is perfect.",
    ),
    "brier": ("Brier score", "Mean squared error of the probabilities. 0 is perfect."),
}
WANTED_BY = {
    "auroc": "auroc",
    "auroc_patient": "auroc",
    "auprc": "auprc",
    "f1": "f1",
    "calibration_error": "calibration",
    "brier": "calibration",
}


def headline(result: RunResult) -> list[Column]:
    """Pooled, best site alone, mean of the sites alone, federated."""
    best = best_alone(result)
    mean = _mean_alone(result)
    return [
        _column("Pooled", "pooled", result.pooled),
        _column("Best site alone", "best", result.alone[best] if best else None, detail=best or ""),
        Column("Mean of sites alone", "mean", mean, detail=f"{len(result.alone)} sites"),
        _column("Federated", "federated", result.federated),
    ]


def metric_rows(columns: Sequence[Column], study: Study) -> list[MetricRow]:
    """The metrics that the study asks for and that at least one model has a value or a place for, in reading order."""
    known = set().union(*(column.metrics for column in columns if column.metrics))
    wanted = [key for key in READINGS if key in known and WANTED_BY.get(key, "f1") in study.evaluation.metrics]
    values = {key: [(column.metrics or {}).get(key) for column in columns] for key in wanted}
    return [MetricRow(key, READINGS[key][0], _reading(key, study), values[key]) for key in wanted]


def _reading(key: str, study: Study) -> str:
    """How to read a metric; a table has rows where others have images."""
    text = READINGS[key][1]
    return text.replace("an image", "a row").replace("images", "rows") if study.data.kind == "tabular" else text


def site_rows(result: RunResult) -> list[SiteRow]:
    """Each site's own held-out patients: federated, its own model, pooled."""
    return [_site_row(result, site) for site in result.sites]


def shortcut_remarks(result: RunResult) -> list[str]:
    """What the trivial baselines say about this data set, in plain sentences."""
    coarse, border, ours = result.trivial.get(COARSE), result.trivial.get(BORDER), result.federated.metrics.get("auroc")
    remarks = []
    if border is not None and border >= SHORTCUT_AUROC:
        remarks.append(
            f"The frame around the image alone reaches {number(border)}: the label can be guessed without looking at the patient "
            "(position, exposure, marks). This is a shortcut, so a high AUROC on this data set does not show that a model has learned "
            "the disease."
        )
    if coarse is not None and ours is not None and ours - coarse < SMALL_GAIN:
        verb = "is no better than" if ours <= coarse else f"is only {number(ours - coarse)} better than"
        remarks.append(f"The federated network {verb} 64 grey squares ({number(coarse)}).")
    return remarks


def worst_epsilon(result: RunResult) -> float | None:
    """The largest ε that a site spent; None without privacy."""
    return max([site.epsilon for site in result.sites if site.epsilon is not None], default=None)


def split_count(counts: dict[str, int], split: str) -> int:
    """Count of a split, whatever the case of its name; 0 when it is not there."""
    return next((count for name, count in counts.items() if name.lower() == split), 0)


def _column(title: str, role: str, model: ModelResult | None, detail: str = "") -> Column:
    if model is None:
        return Column(title, role, None, detail=detail)
    test = model.test
    return Column(title, role, _with_patient_auroc(model), auroc_interval(test.labels, test.scores, test.patients), detail)


def _with_patient_auroc(model: ModelResult) -> Metrics:
    """The model's metrics and, where a patient has several held-out images, the AUROC by patient."""
    test = model.test
    if len(set(test.patients)) == len(test.patients):
        return dict(model.metrics)
    unit = patient_scores(test.scores, test.labels, test.patients)
    return model.metrics | {"auroc_patient": metrics_of(unit.labels, unit.scores)["auroc"]}


def best_alone(result: RunResult) -> str | None:
    """The site whose own model has the highest AUROC on all held-out images."""
    known = {name: value for name, model in result.alone.items() if (value := model.metrics.get("auroc")) is not None}
    return max(known, key=lambda name: known[name], default=None)


def _mean_alone(result: RunResult) -> Metrics | None:
    models = [_with_patient_auroc(model) for model in result.alone.values()]
    if not models:
        return None
    return {key: mean_and_sd(model.get(key) for model in models)[0] for key in models[0]}


def _site_row(result: RunResult, site: SiteResult) -> SiteRow:
    def auroc(model: ModelResult | None) -> float | None:
        return model.per_site.get(site.name, {}).get("auroc") if model else None

    return SiteRow(
        site.name,
        split_count(site.patients, "test"),
        split_count(site.images, "test"),
        auroc(result.federated),
        auroc(result.alone.get(site.name)),
        auroc(result.pooled),
    )
