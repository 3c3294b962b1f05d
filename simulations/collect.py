# SPDX-License-Identifier: Apache-2.0
"""Reads a finished run directory and computes everything the report shows. Mostly exact figures, so for simulations only."""

from __future__ import annotations

import base64
import io
import platform
from collections.abc import Sequence
from importlib import metadata

import numpy as np
import numpy.typing as npt

from client.scores import SiteScores
from client.site import evaluation_path
from common.data.cohort import Cohort, Dataset, Split
from common.errors import FederationError
from common.metrics import Metrics, metrics_of
from simulations import baselines
from simulations.history import History, SiteHistory, read_history
from simulations.measured import measurements
from simulations.prepare import Prepared
from simulations.results import Example, ModelResult, RoundPoint, RunResult, Scores, SiteResult
from simulations.spending import Spending, describe_mechanism, read_spending
from simulations.trivial import trivial_baselines

VERSIONED = ("flwr", "torch", "opacus", "dp-accounting", "numpy", "wardround")
EXAMPLES = 12


def collect(prepared: Prepared) -> RunResult:
    """Everything about a finished run."""
    study, layout, request = prepared.study, prepared.layout, prepared.request
    spending = {name: read_spending(layout.site(name), study) for name in prepared.cohorts}
    history = read_history(layout, prepared.cohorts, prepared.run_id)
    federated = _federated(prepared)
    return RunResult(
        study_id=study.id,
        study=study.model_dump(mode="json"),
        run_id=prepared.run_id,
        seed=study.seed,
        source=request.source,
        synthetic=prepared.dataset.synthetic,
        partition=request.partition,
        command=request.command,
        versions={"python": platform.python_version(), **{name: _version(name) for name in VERSIONED}},
        device=history.device or request.device,
        seconds=history.seconds,
        rounds=study.federation.rounds,
        sites=[_site(prepared, name, spending[name], history.sites[name]) for name in prepared.cohorts],
        privacy=describe_mechanism(study, list(spending.values())),
        federated=federated,
        pooled=_baseline(prepared, baselines.POOLED),
        alone={name: result for name in prepared.cohorts if (result := _baseline(prepared, name)) is not None},
        curve=[_point(prepared, history, number) for number in range(1, study.federation.rounds + 1)],
        measured=measurements(prepared),
        trivial=trivial_baselines(prepared.dataset, _whole_split(prepared)),
        examples=_examples(prepared, federated.test) if prepared.dataset.features is None else [],
        data_digest=prepared.dataset.digest,
        notes=_notes(prepared),
    )


def _notes(prepared: Prepared) -> list[str]:
    notes = [f"The step's public divisor is the sampling rate times a nominal size of {prepared.request.nominal_patients} patients."]
    if prepared.study.is_private:
        notes.append("The simulation takes the mean number of training patients as nominal size; a hospital sets a number of its own.")
    rounds = prepared.study.federation.rounds
    silent = [name for name in prepared.cohorts if not evaluation_path(prepared.layout.site(name), rounds).exists()]
    if silent:
        notes.append(f"The federated model was not scored at {', '.join(silent)}: its figures are of the other sites' patients.")
    return notes + _baseline_notes(prepared)


def _baseline_notes(prepared: Prepared) -> list[str]:
    if not prepared.request.baselines:
        return ["No baselines were trained."]
    protection = "with the same privacy for their own patients" if prepared.study.is_private else "without privacy, like the federation"
    return [f"Pooled and each site alone were trained with the same trainer, the same number of steps, and {protection}."]


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _federated(prepared: Prepared) -> ModelResult:
    rounds = prepared.study.federation.rounds
    paths = [evaluation_path(prepared.layout.site(name), rounds) for name in prepared.cohorts]
    parts = [SiteScores.read(path) for path in paths if path.exists()]
    if not parts:
        raise FederationError("no site scored the final model; the sites' logs say why; put it right and resume")
    return _model_result(prepared, _joined(parts))


def _baseline(prepared: Prepared, name: str) -> ModelResult | None:
    """A baseline's result, None if it was not asked for or refused."""
    path = baselines.scores_path(prepared.layout, prepared.study, name)
    return _model_result(prepared, SiteScores.read(path)) if path.exists() else None


def _joined(parts: Sequence[SiteScores]) -> SiteScores:
    return SiteScores(
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.patients for part in parts]),
        np.concatenate([part.scores for part in parts]),
    )


def _model_result(prepared: Prepared, scores: SiteScores) -> ModelResult:
    return ModelResult(
        metrics=metrics_of(scores.labels, scores.scores),
        per_site={name: _metrics_at(scores, cohort) for name, cohort in prepared.cohorts.items()},
        test=Scores(
            labels=scores.labels.tolist(), scores=scores.scores.tolist(), patients=scores.patients.tolist(), rows=scores.rows.tolist()
        ),
    )


def _metrics_at(scores: SiteScores, cohort: Cohort) -> Metrics:
    here = np.isin(scores.rows, cohort.rows_in(Split.TEST))
    return metrics_of(scores.labels[here], scores.scores[here]) if here.any() else {}


def _site(prepared: Prepared, name: str, spending: Spending, history: SiteHistory) -> SiteResult:
    cohort = prepared.cohorts[name]
    labels = prepared.dataset.labels[cohort.rows_in(Split.TRAIN)]
    return SiteResult(
        name=name,
        patients={split.name.lower(): cohort.patient_count(split) for split in Split},
        images={split.name.lower(): len(cohort.rows_in(split)) for split in Split},
        class_counts={label: int((labels == number).sum()) for number, label in enumerate(prepared.dataset.label_names)},
        nominal_patients=prepared.request.nominal_patients,
        epsilon=spending.epsilon,
        held_out_epsilon=spending.held_out_epsilon,
        charged_steps=spending.steps,
        updates=len(history.rounds),
        refusals=dict(history.refusals),
        warnings=[text.removeprefix(f"{name}: ") for text in prepared.warnings if text.startswith(f"{name}: ")],
        mean_step_seconds=history.mean_step_seconds,
    )


def _point(prepared: Prepared, history: History, number: int) -> RoundPoint:
    """The curves after `number` rounds."""
    scores = _scores_after(prepared, number)
    return RoundPoint(
        round=number,
        seconds=history.round_seconds.get(number, 0.0),
        auroc=metrics_of(*_labels_and_scores(_joined(list(scores.values()))))["auroc"] if scores else None,
        loss={name: site.loss[number] for name, site in history.sites.items() if number in site.loss},
        site_auroc={name: metrics_of(part.labels, part.scores)["auroc"] for name, part in scores.items()},
        epsilon={name: site.epsilon[number] for name, site in history.sites.items() if number in site.epsilon},
    )


def _scores_after(prepared: Prepared, number: int) -> dict[str, SiteScores]:
    paths = {name: evaluation_path(prepared.layout.site(name), number) for name in prepared.cohorts}
    return {name: scores for name, path in paths.items() if path.exists() and len((scores := SiteScores.read(path)).rows)}


def _labels_and_scores(scores: SiteScores) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    return scores.labels, scores.scores


def _whole_split(prepared: Prepared) -> npt.NDArray[np.uint8]:
    """Each row's split over the whole data set; rows of no site count as validation, so they neither train nor test."""
    split = np.full(len(prepared.dataset), Split.VALIDATION, dtype=np.uint8)
    for cohort in prepared.cohorts.values():
        split[cohort.rows] = cohort.split
    return split


def _examples(prepared: Prepared, test: Scores) -> list[Example]:
    """Held-out images spread over the range of the model's confidence, one a patient."""
    dataset = prepared.dataset
    scores = np.asarray(test.scores, dtype=np.float64)
    confidence = scores if scores.ndim == 1 else scores.max(axis=1)
    order = [index for index in np.argsort(confidence) if test.patients.index(test.patients[index]) == index]
    chosen = [order[position] for position in np.linspace(0, len(order) - 1, min(EXAMPLES, len(order))).round().astype(int)]
    return [_example(dataset, test.rows[index], scores[index]) for index in chosen]


def _example(dataset: Dataset, row: int, score: npt.NDArray[np.float64]) -> Example:
    predicted = int(score >= 0.5) if score.ndim == 0 else int(score.argmax())
    probability = float(score.max() if score.ndim else score if predicted else 1 - score)
    return Example(
        png=_png(dataset.images[row]),
        label=dataset.label_names[int(dataset.labels[row])],
        prediction=dataset.label_names[predicted],
        probability=probability,
    )


def _png(image: npt.NDArray[np.uint8]) -> str:
    from PIL import Image

    pixels = image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, -1)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()
