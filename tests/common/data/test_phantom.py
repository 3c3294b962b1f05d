# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from common import study
from common.data.cohort import Dataset
from common.data.phantom import PhantomReader
from common.data.phantom_anatomy import IMAGE_RANGES, PATIENT_RANGES, draw
from common.errors import DataError

SMALL = study.Data(phantom=study.Phantom(patients=40, scanners=3))


def test_population(phantom: Dataset) -> None:
    assert phantom.synthetic and phantom.natural_sites == "scanner"
    assert len(phantom.patient_ids) == 480 and phantom.images.shape[1:] == (1, 32, 32)
    per_patient = np.bincount(phantom.patients)
    assert (per_patient.min(), per_patient.max()) == (1, 6) and 1400 < len(phantom) < 2000
    assert 0.3 < phantom.labels.mean() < 0.5
    assert set(phantom.columns) == {"age", "sex", "scanner"}
    for values in phantom.columns.values():
        pairs = {(int(patient), str(value)) for patient, value in zip(phantom.patients, values, strict=True)}
        assert len(pairs) == 480  # one age, sex and scanner a patient
    first_image = np.unique(phantom.patients, return_index=True)[1]
    assert np.unique(phantom.columns["scanner"][first_image], return_counts=True)[1].tolist() == [120] * 4


def test_same_settings_same_bytes_and_other_settings_others() -> None:
    one, again = PhantomReader().read(SMALL, None), PhantomReader().read(SMALL, None)
    assert np.array_equal(one.images, again.images) and np.array_equal(one.labels, again.labels)
    other = SMALL.model_copy(update={"phantom": study.Phantom(patients=41, scanners=3)})
    assert not np.array_equal(one.images[:5], PhantomReader().read(other, None).images[:5])
    prints = {PhantomReader().fingerprint(data, None) for data in (SMALL, other, SMALL.model_copy(update={"image_size": 64}))}
    assert len(prints) == 3


def test_sizes_show_the_same_chest() -> None:
    small = PhantomReader().read(SMALL, None)
    large = PhantomReader().read(SMALL.model_copy(update={"image_size": 64}), None)
    assert np.array_equal(small.labels, large.labels)
    reduced = large.images.reshape(-1, 32, 2, 32, 2).mean((2, 4))
    correlations = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(small.images, reduced, strict=True)]
    assert min(correlations) > 0.95


def test_a_density_shows_where_it_was_put_and_only_inside_the_lung() -> None:
    middle = {name: np.array([(low + high) / 2], dtype=np.float32) for name, (low, high) in (PATIENT_RANGES | IMAGE_RANGES).items()}
    middle["breast"] = np.zeros(1, dtype=np.float32)

    def density(inside: float) -> np.ndarray:
        blob = np.array([[[0.45, -0.1, 0.15, 0.3, inside, 0.0, 0.25]]], dtype=np.float32)
        return (draw(64, middle, blob) - draw(64, middle, blob * [1, 1, 1, 0, 1, 1, 1]))[0]

    inside, outside = density(1.0), density(0.0)
    row, column = np.unravel_index(inside.argmax(), inside.shape)
    assert abs((column + 0.5) / 32 - 1 - 0.45) < 0.05 and abs((row + 0.5) / 32 - 1 + 0.1) < 0.05
    assert inside[row, column] > 0.4 > 0.01 > outside[row, column]


def test_lungs_are_darker_than_spine_and_air_is_darkest(phantom: Dataset) -> None:
    mean = phantom.images[:, 0].mean(axis=0)
    spine, lungs, corner = mean[12:16, 15:17].mean(), mean[10:18, [8, 9, 10, 22, 23]].mean(), mean[:2, :2].mean()
    assert corner < lungs - 40 < spine - 80


def test_brightness_alone_tells_little_and_coarse_pixels_not_all(phantom: Dataset) -> None:
    images, labels = phantom.images[:, 0].astype(np.float64) / 255, phantom.labels
    assert abs(auroc(labels, images.mean((1, 2))) - 0.5) < 0.1
    coarse = images.reshape(-1, 8, 4, 8, 4).mean((2, 4)).reshape(-1, 64)
    coarse = (coarse - coarse.mean(0)) / coarse.std(0)
    test = phantom.patients % 4 == 0
    known = coarse[~test]
    weights = np.linalg.solve(known.T @ known + 10 * np.eye(64), known.T @ (labels[~test] - labels[~test].mean()))  # ridge
    assert 0.75 < auroc(labels[test], coarse[test] @ weights) < 0.97


def auroc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Share of pairs in the right order."""
    return float((scores[labels == 1][:, None] > scores[labels == 0]).mean())


def test_settings_without_meaning_are_refused_together() -> None:
    data = study.Data(labels=("a", "b", "c"), phantom=study.Phantom(patients=16, scanners=17))
    with pytest.raises(DataError) as caught:
        PhantomReader().read(data, Path("x.npz"))
    assert len(caught.value.problems) == 3


def test_label_values_are_used() -> None:
    data = SMALL.model_copy(update={"label_values": (3, 7)})
    assert set(PhantomReader().read(data, None).labels) == {3, 7}
