# SPDX-License-Identifier: Apache-2.0
"""Training, validation or test: decided once for each patient, by a keyed hash of the patient id.

The decision depends on nothing but key, id and fractions: it stays the same when other patients come or go, and for all cohorts and
studies of a site that keeps its key. A larger test fraction only adds test patients. A site's key is secret; simulations on public
data use `PUBLIC_KEY`. An official split of the data set takes the place of the hash.
"""

from __future__ import annotations

import hashlib
import hmac

import numpy as np

from common import study
from common.data.checks import split_problems
from common.data.cohort import ByteArray, Dataset, Split
from common.errors import DataError

PUBLIC_KEY = b"wardround: public key of splits in simulations, version 1"
_HASH_BYTES = 8


def uniform_of_patient(key: bytes, patient_id: str) -> float:
    """A number in [0, 1) from HMAC-SHA256(key, patient id)."""
    digest = hmac.new(key, patient_id.encode(), hashlib.sha256).digest()
    bits = int.from_bytes(digest[:_HASH_BYTES], "big") >> 11  # 53 bits, exact in a float
    return float(bits) / 2**53


def split_of_patient(key: bytes, patient_id: str, test_fraction: float, validation_fraction: float) -> Split:
    """The one use of a patient: test below `test_fraction`, then validation, else training."""
    uniform = uniform_of_patient(key, patient_id)
    if uniform < test_fraction:
        return Split.TEST
    if uniform < test_fraction + validation_fraction:
        return Split.VALIDATION
    return Split.TRAIN


def split_patients(dataset: Dataset, key: bytes, data: study.Data) -> ByteArray:
    """What each image is for, uint8 [N] of `Split`: the official split if there is one, else by keyed hash.

    Raises DataError when an official split tears a patient, or when the fractions leave nobody to train on.
    """
    if data.test_fraction + data.validation_fraction >= 1:
        raise DataError("data.test_fraction and data.validation_fraction leave no patient for training; lower them to a sum below 1")
    if dataset.split is not None:
        problems = split_problems(dataset.patients.astype(np.str_), dataset.split)
        if problems:
            raise DataError(problems)
        return dataset.split
    of_patient = [split_of_patient(key, patient, data.test_fraction, data.validation_fraction) for patient in dataset.patient_ids]
    return np.array(of_patient, dtype=np.uint8)[dataset.patients]
