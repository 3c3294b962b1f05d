# SPDX-License-Identifier: Apache-2.0
"""Metrics against values computed by hand and against a naive pair count."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.metrics import (
    auroc_interval,
    binary_metrics,
    calibration_bins,
    expected_calibration_error,
    mean_and_sd,
    metrics_of,
    multiclass_metrics,
    patient_scores,
)

LABELS = [0, 0, 1, 1, 1]
SCORES = [0.1, 0.6, 0.4, 0.6, 0.9]


def naive_auroc(labels: list[int], scores: list[float]) -> float:
    """Share of (positive, negative) pairs in the right order; a tie is half."""
    pairs = [(p, n) for p, a in zip(scores, labels, strict=True) if a for n, b in zip(scores, labels, strict=True) if not b]
    return sum(1.0 if p > n else 0.5 if p == n else 0.0 for p, n in pairs) / len(pairs)


def test_binary_metrics_by_hand() -> None:
    found = binary_metrics(LABELS, SCORES)
    # pairs: .4>.1, .4<.6, .6>.1, .6=.6, .9>.1, .9>.6 -> 4.5 of 6
    assert found["auroc"] == pytest.approx(4.5 / 6)
    # thresholds .9, .6, .4, .1: recall 1/3, 2/3, 1, 1 and precision 1, 2/3, 3/4, 3/5
    assert found["auprc"] == pytest.approx(1 / 3 * 1 + 1 / 3 * 2 / 3 + 1 / 3 * 3 / 4)
    assert found["sensitivity"] == pytest.approx(2 / 3)
    assert found["specificity"] == pytest.approx(1 / 2)
    assert found["accuracy"] == pytest.approx(3 / 5)
    assert found["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert found["brier"] == pytest.approx((0.01 + 0.36 + 0.36 + 0.16 + 0.01) / 5)
    # bins of .1, .4, (.6 and .6), .9: gaps .1, .6, |.6 - .5|, .1
    assert found["calibration_error"] == pytest.approx((0.1 + 0.6 + 2 * 0.1 + 0.1) / 5)


def test_a_score_of_one_half_is_an_alarm() -> None:
    found = binary_metrics([0, 1], [0.5, 0.5])
    assert (found["sensitivity"], found["specificity"]) == (1.0, 0.0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20)), min_size=2, max_size=40).filter(lambda rows: len({r[0] for r in rows}) == 2)
)
def test_auroc_equals_the_naive_pair_count(rows: list[tuple[int, int]]) -> None:
    labels, scores = [row[0] for row in rows], [row[1] / 20 for row in rows]
    assert binary_metrics(labels, scores)["auroc"] == pytest.approx(naive_auroc(labels, scores))


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_gives_none_where_two_are_needed(label: int) -> None:
    found = binary_metrics([label] * 3, [0.2, 0.7, 0.7])
    assert found["auroc"] is found["auprc"] is found["f1"] is None
    assert (found["sensitivity"] is None, found["specificity"] is None) == (label == 0, label == 1)
    assert found["brier"] is not None and found["calibration_error"] is not None


def test_no_image_gives_none_everywhere() -> None:
    assert set(binary_metrics([], []).values()) == {None}
    assert set(multiclass_metrics([], np.zeros((0, 3))).values()) == {None}


def test_metrics_are_never_nan() -> None:
    for found in (binary_metrics([1], [0.3]), binary_metrics([0, 1], [1.0, 0.0]), multiclass_metrics([2], [[0.0, 0.0, 1.0]])):
        assert all(value is None or math.isfinite(value) for value in found.values())


def test_multiclass_metrics_by_hand() -> None:
    labels = [0, 1, 2, 2]
    scores = [[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.7, 0.1, 0.2], [0.2, 0.2, 0.6]]
    found = multiclass_metrics(labels, scores)
    rest = [naive_auroc([int(label == c) for label in labels], [row[c] for row in scores]) for c in range(3)]
    assert rest == pytest.approx([2 / 3, 1.0, 1.0])
    assert found["auroc"] == pytest.approx(np.mean(rest))
    assert found["accuracy"] == pytest.approx(3 / 4)
    # predicted 0, 1, 0, 2: F1 2/3, 1, 2/3
    assert found["f1"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    assert found["brier"] == pytest.approx((0.26 + 0.06 + (0.49 + 0.01 + 0.64) + (0.04 + 0.04 + 0.16)) / 4)
    # top labels .6 (right), .8 (right), .7 (wrong), .6 (right); bins .6 twice, .8, .7
    assert found["calibration_error"] == pytest.approx((2 * 0.4 + 0.2 + 0.7) / 4)


def test_multiclass_averages_over_the_classes_that_occur() -> None:
    scores = [[0.6, 0.3, 0.1], [0.1, 0.8, 0.1], [0.5, 0.4, 0.1]]
    assert multiclass_metrics([0, 1, 0], scores)["auroc"] == 1.0
    assert multiclass_metrics([0, 0, 0], scores)["auroc"] is None


def test_two_columns_agree_with_the_binary_case() -> None:
    generator = np.random.default_rng(3)
    labels, score = generator.integers(0, 2, 50), generator.random(50)
    wide = metrics_of(labels, np.stack([1 - score, score], axis=1))
    assert wide["auroc"] == pytest.approx(metrics_of(labels, score)["auroc"])


def test_calibration_bins_put_one_into_the_last() -> None:
    bins = calibration_bins([1, 0, 1], [1.0, 0.0, 0.95])
    assert bins.images.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 2]
    assert bins.confidence[9] == pytest.approx(0.975) and bins.observed[9] == 1.0


def test_a_calibrated_model_has_no_calibration_error() -> None:
    assert expected_calibration_error([0, 0, 0, 1], [0.25] * 4) == pytest.approx(0.0)


def test_patient_scores_average_a_patients_images() -> None:
    found = patient_scores(scores=[0.2, 0.4, 0.9, 0.1], labels=[1, 1, 0, 0], patients=[7, 7, 3, 3])
    assert found.patients.tolist() == [3, 7]
    assert found.labels.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx([0.5, 0.3])


def test_a_patient_with_two_labels_is_two_units() -> None:
    found = patient_scores(scores=[0.2, 0.4, 0.9], labels=[0, 1, 1], patients=[5, 5, 5])
    assert (found.patients.tolist(), found.labels.tolist()) == ([5, 5], [0, 1])
    assert found.scores.tolist() == pytest.approx([0.2, 0.65])


def test_patient_scores_of_several_classes() -> None:
    found = patient_scores(scores=[[0.2, 0.8], [0.6, 0.4]], labels=[1, 1], patients=[0, 0])
    assert found.scores == pytest.approx(np.array([[0.4, 0.6]]))


def test_interval_holds_the_figure_and_is_wider_for_clustered_images() -> None:
    generator = np.random.default_rng(5)
    labels = np.repeat(generator.integers(0, 2, 60), 5)
    scores = np.clip(0.5 + 0.2 * (labels - 0.5) + np.repeat(0.2 * generator.normal(size=60), 5), 0, 1)
    by_patient = auroc_interval(labels, scores, np.repeat(np.arange(60), 5))
    by_image = auroc_interval(labels, scores, np.arange(300))
    auroc = binary_metrics(labels, scores)["auroc"]
    assert by_patient is not None and by_image is not None and auroc is not None
    assert by_patient[0] < auroc < by_patient[1]
    assert by_patient[1] - by_patient[0] > 1.5 * (by_image[1] - by_image[0])
    assert by_patient == auroc_interval(labels, scores, np.repeat(np.arange(60), 5))


def test_interval_of_a_perfect_model_is_a_point() -> None:
    labels = [0, 1] * 20
    assert auroc_interval(labels, [float(label) for label in labels], list(range(40))) == (1.0, 1.0)
    assert auroc_interval(labels, [[1.0 - label, float(label)] for label in labels], list(range(40))) == (1.0, 1.0)


def test_no_interval_where_a_class_is_missing_or_rare() -> None:
    assert auroc_interval([0, 0, 0], [0.1, 0.2, 0.3], [0, 1, 2]) is None
    assert auroc_interval([0, 0, 1], [0.1, 0.2, 0.3], [0, 1, 2]) is None


def test_mean_and_sd() -> None:
    assert mean_and_sd([1.0, 2.0, None, 6.0]) == (3.0, pytest.approx(math.sqrt(7)))
    assert mean_and_sd([0.5]) == (0.5, None)
    assert mean_and_sd([None]) == (None, None)


@pytest.mark.parametrize(
    ("labels", "scores", "words"),
    [
        ([0, 1], [0.1], "do not fit"),
        ([0, 2], [0.1, 0.2], "whole numbers 0…1"),
        ([0, 1], [0.1, math.nan], "1 of 2 are not finite"),
        ([0, 1], [0.1, 1.2], "probabilities 0…1"),
        ([0, 1], [[0.5, 0.6], [0.5, 0.5]], "sum to 1"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "whole numbers 0…1"),
        ([0.5, 1], [0.1, 0.2], "whole numbers"),
    ],
)
def test_bad_input_is_refused(labels: list[float], scores: object, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        metrics_of(labels, scores)  # type: ignore[arg-type]


def test_everything_wrong_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"labels: .*; scores: "):
        metrics_of([0, 5], [0.1, 7.0])


def test_patients_must_fit_the_labels() -> None:
    with pytest.raises(ValueError, match="one patient number for each image"):
        patient_scores([0.1, 0.2], [0, 1], [3])
    with pytest.raises(ValueError, match="one patient number for each image"):
        auroc_interval([0, 1], [0.1, 0.2], [3])
