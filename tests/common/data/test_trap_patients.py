# SPDX-License-Identifier: Apache-2.0
import numpy as np

from common.data.cohort import Cohort, Dataset, Split


def test_all_images_of_a_patient_are_one_unit() -> None:
    images = np.zeros((7, 1, 2, 2), np.uint8)
    patients = np.array([2, 0, 2, 1, 2, 0, 1])
    dataset = Dataset(images, np.zeros(7, np.int64), patients, ("p", "q", "r"), ("a", "b"), {}, None, None, False, "d")
    split = np.array([Split.TRAIN] * 6 + [Split.TEST], np.uint8)
    found = Cohort(dataset, np.arange(7), split).patients_in(Split.TRAIN)
    assert [rows.tolist() for rows in found] == [[1, 5], [3], [0, 2, 4]]
