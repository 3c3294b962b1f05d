# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from common.data.checks import checked, cohort_problems, cohort_warnings
from common.data.cohort import Cohort, Dataset, Split
from common.data.sources import RawTable
from common.errors import DataError
from tests.common.data.tables import small_data, small_images, small_table


def problems(table: RawTable, **settings: Any) -> tuple[str, ...]:
    with pytest.raises(DataError) as caught:
        checked(table, small_data(**settings))
    return caught.value.problems


def test_a_good_table_passes_unchanged() -> None:
    table = checked(small_table(), small_data())
    assert np.array_equal(table.images, small_images()) and table.labels.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]


def test_all_problems_at_once_and_no_patient_id_in_any() -> None:
    images = small_images().astype(np.float32)
    images[3, 0, 0] = np.nan
    images[5] = 7
    ids = np.array([f"secret-{n // 2}" for n in range(7)])
    table = small_table(images=images, labels=np.array([0, 1, 2, 3, 0, 0, 1, 1]), patient_ids=ids)
    found = "\n".join(problems(table))
    for part in ("8 images but 7 patient ids", "outside the list: 2, 3", "float32", "NaN or infinity (row 3)", "one value only (row 5)"):
        assert part in found
    assert "secret" not in found
    assert all(line.startswith("small.npz: ") for line in found.splitlines())


def test_at_most_five_rows_are_named() -> None:
    images = small_images()
    images[:7] = 1
    assert "(rows 0, 1, 2, 3, 4, …)" in problems(small_table(images=images))[0]


def test_label_values_and_drop() -> None:
    table = small_table(labels=np.array([5, 5, 9, 9, 5, 5, 2, 2]), columns={"age": np.arange(8)}, split=np.zeros(8, np.uint8))
    assert "outside the list: 2" in problems(table, label_values=(9, 5))[0]
    kept = checked(table, small_data(label_values=(9, 5), other_labels="drop"))
    assert kept.labels.tolist() == [1, 1, 0, 0, 1, 1]
    assert kept.columns["age"].tolist() == [0, 1, 2, 3, 4, 5] and kept.split is not None and len(kept.split) == len(kept.images) == 6
    assert kept.patient_ids is not None and kept.patient_ids.tolist() == list("aabbcc")
    assert "no image has one of the labels 7, 8" in problems(table, label_values=(7, 8), other_labels="drop")[0]


@pytest.mark.parametrize(
    ("labels", "part"),
    [(np.ones((8, 14), int), "one label"), (np.full(8, 0.5), "float64"), (np.array(["normal"] * 7 + ["mass"]), "outside the list: mass")],
)
def test_labels_of_a_wrong_kind(labels: np.ndarray, part: str) -> None:
    assert part in problems(small_table(labels=labels))[0]


def test_column_of_labels_and_names_of_labels_are_fine() -> None:
    assert checked(small_table(labels=small_table().labels[:, None].astype(bool)), small_data()).labels.sum() == 4
    named = np.array(["opacity", "normal"] * 4)
    assert checked(small_table(labels=named), small_data()).labels.tolist() == [1, 0] * 4


@pytest.mark.parametrize(
    ("images", "part"),
    [
        (small_images().astype(np.uint16) * 4, "uint16"),
        (np.zeros((8, 3, 16, 16), np.uint8), "[N, H, W] or [N, H, W, 3]"),
        (small_images(8, 5), "image_size: 5"),
        (np.zeros((8, 16, 20), np.uint8), "square"),
        (small_images(8, 16).reshape(8, 256), "shape [8, 256]"),
    ],
)
def test_images_of_a_wrong_kind(images: np.ndarray, part: str) -> None:
    assert any(part in problem for problem in problems(small_table(images=images)))


def test_colour_is_made_grey_only_when_it_is_grey() -> None:
    colour = np.stack([small_images()] * 3, axis=3)
    grey = checked(small_table(images=colour), small_data())
    assert np.array_equal(grey.images, small_images())
    assert (
        len(grey.remarks) == 1 and "8 images are stored with three colour channels that are equal, and were read as grey" in grey.remarks[0]
    )
    assert checked(small_table(images=colour), small_data(channels=3)).remarks == checked(small_table(), small_data()).remarks == ()
    colour[6, 0, 0, 2] ^= 1
    assert "1 images are in colour (row 6)" in problems(small_table(images=colour))[0]
    assert checked(small_table(images=colour), small_data(channels=3)).images.shape == (8, 16, 16, 3)
    assert checked(small_table(), small_data(channels=3)).images.shape == (8, 16, 16, 3)


def test_patients() -> None:
    assert "4 patients, but data.min_patients is 5" in problems(small_table(), min_patients=5)[0]
    assert "empty patient id (rows 0, 1)" in problems(small_table(patient_ids=np.array(["", " ", *"bbccdd"])))[0]
    assert "float64" in problems(small_table(patient_ids=np.arange(8.0)))[0]
    numbered = checked(small_table(patient_ids=np.array([1, 1, 2, 2, 3, 3, 4, 4])), small_data())
    assert numbered.patient_ids is not None and numbered.patient_ids.tolist() == list("11223344")
    split = np.array([0, 2, 0, 0, 1, 1, 2, 2], dtype=np.uint8)
    assert "1 patients have images in two parts" in problems(small_table(split=split))[0]


def dataset_of(labels: list[int]) -> Dataset:
    count = len(labels)
    images = np.zeros((count, 1, 16, 16), np.uint8)
    ids = tuple(map(str, range(count)))
    return Dataset(images, np.array(labels), np.arange(count), ids, ("normal", "opacity"), {}, None, None, False, "0" * 64)


def test_one_class_is_a_warning_and_too_few_patients_a_problem() -> None:
    split = np.array([Split.TRAIN] * 4 + [Split.TEST] * 2, dtype=np.uint8)
    both = Cohort(dataset_of([0, 1, 0, 1, 0, 1]), np.arange(6), split)
    assert cohort_warnings(both) == [] and cohort_problems(both, small_data(min_patients=4), "site-1") == []
    assert "site-1: 4 training patients, but data.min_patients is 5" in cohort_problems(both, small_data(min_patients=5), "site-1")[0]
    one = cohort_warnings(Cohort(dataset_of([1, 1, 1, 1, 0, 0]), np.arange(6), split))
    assert "training images are of one class (opacity)" in one[0] and "test images are of one class (normal)" in one[1]
    assert cohort_warnings(Cohort(dataset_of([0, 1]), np.arange(2), np.zeros(2, np.uint8))) == ["no test patients"]
