# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from common import study
from common.data.checks import checked
from common.data.cohort import Split
from common.data.medmnist import MedMnistReader
from common.data.store import materialise
from common.errors import DataError
from tests.common.data.tables import PNEUMONIA_MNIST, small_images

DATA = study.Data(source="medmnist", image_size=28, labels=("normal", "pneumonia"), one_image_one_patient=True)


def write_layout(path: Path, **changes: np.ndarray | None) -> Path:
    arrays: dict[str, np.ndarray | None] = {}
    for prefix, count in (("train", 6), ("val", 2), ("test", 4)):
        arrays[f"{prefix}_images"] = small_images(count, 28)
        arrays[f"{prefix}_labels"] = np.arange(count)[:, None] % 2
    np.savez(path, **{name: array for name, array in (arrays | changes).items() if array is not None})
    return path


def test_official_split_of_pneumonia_mnist_is_kept(tmp_path: Path) -> None:
    dataset = materialise(DATA, PNEUMONIA_MNIST, tmp_path)
    assert dataset.split is not None
    assert np.bincount(dataset.split).tolist() == [4708, 524, 624]
    assert len(dataset.patient_ids) == 5856
    with np.load(PNEUMONIA_MNIST) as stored:
        rows = np.flatnonzero(dataset.split == Split.TEST)
        assert np.array_equal(dataset.images[rows, 0], stored["test_images"])
        assert np.array_equal(dataset.labels[rows], stored["test_labels"][:, 0])


def test_without_the_declaration_the_missing_ids_are_explained() -> None:
    with pytest.raises(DataError, match="one_image_one_patient: true"):
        MedMnistReader().read(DATA.model_copy(update={"one_image_one_patient": False}), PNEUMONIA_MNIST)


def test_patient_in_two_official_parts_is_refused(tmp_path: Path) -> None:
    data = DATA.model_copy(update={"one_image_one_patient": False, "min_patients": 2})
    ids = {"train_patient_id": np.array(list("aabbcc")), "val_patient_id": np.array(list("dd")), "test_patient_id": np.array(list("eeff"))}
    good = MedMnistReader().read(data, write_layout(tmp_path / "good.npz", **ids))
    assert len(checked(good, data).images) == 12
    torn = MedMnistReader().read(data, write_layout(tmp_path / "torn.npz", **(ids | {"test_patient_id": np.array(list("eeaf"))})))
    with pytest.raises(DataError, match="1 patients have images in two parts"):
        checked(torn, data)


def test_problems_of_the_layout_come_together(tmp_path: Path) -> None:
    path = write_layout(tmp_path / "a.npz", test_labels=None, val_images=small_images(2, 16), train_labels=np.zeros((5, 1), int))
    with pytest.raises(DataError) as caught:
        MedMnistReader().read(DATA, path)
    text = str(caught.value)
    assert "no array test_labels" in text and "mixed sizes" in text and "6 train_images but 5 train_labels" in text


@pytest.mark.skipif(importlib.util.find_spec("medmnist") is not None, reason="the extra is installed")
def test_name_without_the_package_says_how_to_install_it() -> None:
    with pytest.raises(DataError, match=r"wardround\[medmnist\]"):
        MedMnistReader().read(DATA, Path("pneumoniamnist"))
