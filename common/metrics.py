# SPDX-License-Identifier: Apache-2.0
"""Exact metrics from labels and scores.

For whoever owns the data only: an exact metric of held-out patients is a release, so a site never sends one (it sends noised
histograms). A metric that cannot be measured, such as the AUROC of one class, is None: never NaN, never a warning, never a made-up .5.
A score is a probability: [N] of the second class in a binary task, [N, C] of every class otherwise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
Metrics = dict[str, float | None]

THRESHOLD = 0.5
CALIBRATION_BINS = 10
ROW_SUM_TOLERANCE = 1e-3
BOOTSTRAP_CHUNK_CELLS = 2_000_000


class CalibrationBins(NamedTuple):
    """Equal-width bins of confidence: mean confidence [B], share of hits [B] (both 0 where empty), and number of images [B]."""

    confidence: FloatArray
    observed: FloatArray
    images: IntArray


class PatientScores(NamedTuple):
    """One row for each (patient, label): `scores` is [P] or [P, C]."""

    labels: IntArray
    scores: FloatArray
    patients: IntArray


def metrics_of(labels: npt.ArrayLike, scores: npt.ArrayLike) -> Metrics:
    """`binary_metrics` for scores [N], `multiclass_metrics` for scores [N, C]."""
    return binary_metrics(labels, scores) if np.ndim(scores) == 1 else multiclass_metrics(labels, scores)


def binary_metrics(labels: npt.ArrayLike, scores: npt.ArrayLike) -> Metrics:
    """Metrics of labels 0/1 [N] and probabilities of label 1 [N].

    `f1`, `sensitivity`, `specificity` and `accuracy` are at threshold .5 (a score of .5 counts as positive); `brier` is the mean squared
    error of the probability (0…1); `calibration_error` is described at `expected_calibration_error`. auroc, auprc (average precision)
    and f1 need both classes. Raises ValueError for lengths, labels or scores that do not fit.
    """
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    truth, score = _checked(labels, scores, dimensions=1)
    predicted = (score >= THRESHOLD).astype(np.int64)
    both = len(np.unique(truth)) == 2
    return {
        "auroc": float(roc_auc_score(truth, score)) if both else None,
        "auprc": float(average_precision_score(truth, score)) if both else None,
        "f1": float(f1_score(truth, predicted, zero_division=0.0)) if both else None,
        "sensitivity": _mean(predicted[truth == 1]),
        "specificity": _mean(1 - predicted[truth == 0]),
        "accuracy": _mean(predicted == truth),
        "brier": _mean((score - truth) ** 2),
        "calibration_error": expected_calibration_error(truth, score),
    }


def multiclass_metrics(labels: npt.ArrayLike, scores: npt.ArrayLike) -> Metrics:
    """Metrics of class numbers [N] and class probabilities [N, C] (rows sum to 1).

    `auroc` and `auprc` are one class against the rest, averaged over the classes that occur, with equal weight (macro), as is `f1` of
    the most probable class; all three need two classes that occur. `brier` is the squared distance to the one-hot label, summed over
    classes (0…2, Brier 1950). Raises ValueError for lengths, labels or scores that do not fit.
    """
    from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

    truth, score = _checked(labels, scores, dimensions=2)
    present = np.unique(truth)
    predicted = _top_class(score)
    several = len(present) > 1
    one_hot = np.eye(score.shape[1])[truth]  # [N, C]
    return {
        "auroc": float(np.mean([roc_auc_score(truth == c, score[:, c]) for c in present])) if several else None,
        "auprc": float(np.mean([average_precision_score(truth == c, score[:, c]) for c in present])) if several else None,
        "f1": float(f1_score(truth, predicted, labels=present, average="macro", zero_division=0.0)) if several else None,
        "accuracy": _mean(predicted == truth),
        "brier": _mean(((score - one_hot) ** 2).sum(axis=1)),
        "calibration_error": expected_calibration_error(truth, score),
    }


def expected_calibration_error(labels: npt.ArrayLike, scores: npt.ArrayLike) -> float | None:
    """Mean gap between promised and observed frequency over 10 equal-width bins, each weighted by its images (Guo et al. 2017).

    Binary: the probability of label 1 against how often label 1 is true. Several classes: the probability of the most probable class
    against how often it is right. None without any image.
    """
    bins = calibration_bins(labels, scores)
    if not bins.images.sum():
        return None
    return float(np.average(np.abs(bins.confidence - bins.observed), weights=bins.images))


def calibration_bins(labels: npt.ArrayLike, scores: npt.ArrayLike) -> CalibrationBins:
    """The bins behind `expected_calibration_error`; bin b holds confidence [b/10, (b+1)/10), the last one also 1."""
    truth, score = _checked(labels, scores, dimensions=np.ndim(scores))
    confidence, hit = (score, truth) if score.ndim == 1 else (score.max(axis=1, initial=0.0), _top_class(score) == truth)
    index = np.minimum((confidence * CALIBRATION_BINS).astype(np.int64), CALIBRATION_BINS - 1)
    count = np.bincount(index, minlength=CALIBRATION_BINS)
    fair = np.maximum(count, 1)
    sums = [np.bincount(index, weights=values, minlength=CALIBRATION_BINS) for values in (confidence, hit)]
    return CalibrationBins(sums[0] / fair, sums[1] / fair, count.astype(np.int64))


def patient_scores(scores: npt.ArrayLike, labels: npt.ArrayLike, patients: npt.ArrayLike) -> PatientScores:
    """One score a patient: the mean over the patient's images, for patient-level figures.

    A patient whose images carry different labels (two visits, say) is kept as one unit for each label. Rows come in ascending order of
    patient, then label. Raises ValueError when lengths, labels or scores do not fit.
    """
    truth, score = _checked(labels, scores, dimensions=np.ndim(scores))
    owner = _owners(patients, truth)
    units, index, count = np.unique(np.stack([owner, truth], axis=1), axis=0, return_inverse=True, return_counts=True)
    total = np.zeros((len(units), *score.shape[1:]))
    np.add.at(total, index.reshape(-1), score)
    mean = total / count.reshape(-1, *[1] * (score.ndim - 1))
    return PatientScores(units[:, 1], mean, units[:, 0])


def auroc_interval(
    labels: npt.ArrayLike, scores: npt.ArrayLike, patients: npt.ArrayLike, resamples: int = 1000
) -> tuple[float, float] | None:
    """95 % interval of the AUROC: percentile bootstrap over patients, so images of one patient stay together.

    It answers how far the figure would move with other held-out patients, not with another training run. Deterministic. None when one
    class is missing, or when it is so rare that one resample in ten misses it. Raises ValueError as `binary_metrics` does.
    """
    truth, score = _checked(labels, scores, dimensions=np.ndim(scores))
    owner = np.unique(_owners(patients, truth), return_inverse=True)[1].reshape(-1)
    if len(np.unique(truth)) < 2:
        return None
    found = np.concatenate(list(_resampled_auroc(truth, score, owner, resamples)))
    found = found[np.isfinite(found)]
    if len(found) < 0.9 * resamples:
        return None
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def mean_and_sd(values: Iterable[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1). None is left out; no value gives (None, None), a single one has no deviation."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None


def _resampled_auroc(truth: IntArray, score: FloatArray, owner: IntArray, resamples: int) -> Iterator[FloatArray]:
    """AUROC of patients drawn anew with replacement, a few resamples at a time; macro over classes; NaN where a class was not drawn."""
    generator = np.random.default_rng(0)
    people = int(owner.max()) + 1
    chunk = max(1, BOOTSTRAP_CHUNK_CELLS // len(truth))
    columns = [(truth == 1, score)] if score.ndim == 1 else [(truth == c, score[:, c]) for c in np.unique(truth)]
    for start in range(0, resamples, chunk):
        drawn = generator.multinomial(people, np.full(people, 1 / people), size=min(chunk, resamples - start))
        weights = drawn[:, owner].astype(np.float64)  # (resamples, images)
        yield np.mean([_weighted_auroc(positive, column, weights) for positive, column in columns], axis=0)


def _weighted_auroc(positive: npt.NDArray[np.bool_], score: FloatArray, weights: FloatArray) -> FloatArray:
    """Area under the weighted ROC curve by the trapezoid rule, ties as one step: weights [R, N] to [R]."""
    order = np.argsort(-score, kind="stable")
    last_of_tie = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    ordered = weights[:, order]
    hits = np.cumsum(ordered * positive[order], axis=1)[:, last_of_tie]
    alarms = np.cumsum(ordered * ~positive[order], axis=1)[:, last_of_tie]
    hits, alarms = (np.pad(values, ((0, 0), (1, 0))) for values in (hits, alarms))
    area = (np.diff(alarms, axis=1) * (hits[:, 1:] + hits[:, :-1]) / 2).sum(axis=1)
    whole = hits[:, -1] * alarms[:, -1]
    rows: FloatArray = np.divide(area, whole, out=np.full(len(weights), np.nan), where=whole > 0)
    return rows


def _owners(patients: npt.ArrayLike, truth: IntArray) -> IntArray:
    owner = np.asarray(patients, dtype=np.int64)
    if owner.shape != truth.shape:
        raise ValueError(f"patients {owner.shape} but labels {truth.shape}; give one patient number for each image")
    return owner


def _top_class(score: FloatArray) -> IntArray:
    return np.asarray(score.argmax(axis=1) if len(score) else np.zeros(0), dtype=np.int64)


def _mean(values: npt.NDArray[Any]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _checked(labels: npt.ArrayLike, scores: npt.ArrayLike, dimensions: int) -> tuple[IntArray, FloatArray]:
    """Labels int64 [N] and scores float64 with `dimensions` axes, or ValueError with everything that is wrong."""
    truth, score = np.asarray(labels), np.asarray(scores, dtype=np.float64)
    if truth.size == 0 and score.size == 0:
        return np.zeros(0, dtype=np.int64), np.zeros((0, 2) if dimensions == 2 else 0)
    if truth.ndim != 1 or score.ndim != dimensions or dimensions not in (1, 2) or len(truth) != len(score):
        raise ValueError(f"labels {truth.shape} and scores {score.shape} do not fit; give labels [N] and scores [N] or [N, C]")
    problems = [*_label_problems(truth, 2 if dimensions == 1 else score.shape[1]), *_score_problems(score)]
    if problems:
        raise ValueError("; ".join(problems))
    return truth.astype(np.int64), score


def _label_problems(truth: npt.NDArray[Any], classes: int) -> list[str]:
    if np.isin(truth, np.arange(classes)).all():
        return []
    return [f"labels: must be whole numbers 0…{classes - 1}, found {sorted(set(truth.tolist()))[:8]}"]


def _score_problems(score: FloatArray) -> list[str]:
    finite = np.isfinite(score)
    if not finite.all():
        return [f"scores: {int((~finite).sum())} of {score.size} are not finite; the model has diverged"]
    if score.min() < 0 or score.max() > 1:
        return [f"scores: must be probabilities 0…1, found {score.min():.4g} to {score.max():.4g}; apply sigmoid or softmax first"]
    if score.ndim == 2 and np.abs(score.sum(axis=1) - 1).max() > ROW_SUM_TOLERANCE:
        return ["scores: the probabilities of an image must sum to 1; apply softmax first"]
    return []
