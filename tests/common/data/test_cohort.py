# SPDX-License-Identifier: Apache-2.0
import numpy as np

from common.data.cohort import Cohort, Dataset, Split


def test_an_account_is_its_patients_whatever_the_cohort_is_called_and_however_its_rows_lie() -> None:
    images = np.zeros((6, 1, 2, 2), np.uint8)
    labels, patients = np.zeros(6, np.int64), np.array([0, 0, 1, 1, 2, 2])
    dataset = Dataset(images, labels, patients, ("p", "q", "r"), ("a", "b"), {}, None, None, False, "d")
    train = np.zeros(4, np.uint8)
    one = Cohort(dataset, np.array([0, 1, 2, 3]), train)
    fewer_images = Cohort(dataset, np.array([3, 0]), train[:2])
    others = Cohort(dataset, np.array([0, 1, 4, 5]), train)
    assert one.account(Split.TRAIN) == fewer_images.account(Split.TRAIN)
    assert one.account(Split.TRAIN) != others.account(Split.TRAIN)
    assert one.account(Split.TRAIN) != one.account(Split.TEST)
