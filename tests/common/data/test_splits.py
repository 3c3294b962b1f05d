# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import hmac
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import study
from common.data.cohort import Dataset, Split
from common.data.splits import PUBLIC_KEY, split_of_patient, split_patients, uniform_of_patient
from common.errors import DataError

IDS = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=30, unique=True)


def dataset_of(patient_ids: list[str], images_each: int = 3) -> Dataset:
    """Each patient's images lie apart: patient numbers 0 1 2 … 0 1 2 …."""
    patients = np.tile(np.arange(len(patient_ids)), images_each)
    images = np.zeros((len(patients), 1, 2, 2), np.uint8)
    return Dataset(images, np.zeros_like(patients), patients, tuple(patient_ids), ("normal", "opacity"), {}, None, None, False, "")


def test_uniform_number_is_the_hmac() -> None:
    digest = hmac.digest(b"key", b"patient", hashlib.sha256)
    assert uniform_of_patient(b"key", "patient") == pytest.approx(int.from_bytes(digest, "big") / 2**256, abs=2**-52)


@given(st.text(), st.floats(0.01, 0.5), st.floats(0, 0.4))
def test_thresholds(patient: str, test: float, validation: float) -> None:
    uniform = uniform_of_patient(b"key", patient)
    assert 0 <= uniform < 1
    expected = Split.TEST if uniform < test else Split.VALIDATION if uniform < test + validation else Split.TRAIN
    assert split_of_patient(b"key", patient, test, validation) is expected


@settings(max_examples=50)
@given(IDS, st.data())
def test_patients_are_whole_and_stable_when_others_come(ids: list[str], data: st.DataObject) -> None:
    fractions = study.Data(test_fraction=0.3, validation_fraction=0.2)
    whole = dataset_of(ids)
    split = split_patients(whole, b"key", fractions)
    for patient in range(len(ids)):
        assert len(set(split[whole.patients == patient])) == 1
    fewer = data.draw(st.lists(st.sampled_from(ids), min_size=1, unique=True))
    alone = split_patients(dataset_of(fewer), b"key", fractions)
    by_id = dict(zip(ids, split[: len(ids)], strict=True))
    assert alone[: len(fewer)].tolist() == [by_id[patient] for patient in fewer]


@pytest.mark.parametrize("key", [PUBLIC_KEY, b"another", b"third"])
def test_shares_are_near_nominal_and_depend_on_the_key(key: bytes) -> None:
    uses = np.array([split_of_patient(key, f"patient-{n}", 0.2, 0.1) for n in range(20_000)])
    assert abs((uses == Split.TEST).mean() - 0.2) < 0.012  # 4 standard deviations
    assert abs((uses == Split.VALIDATION).mean() - 0.1) < 0.009
    others = np.array([split_of_patient(b"fourth", f"patient-{n}", 0.2, 0.1) for n in range(20_000)])
    assert 0.4 < (uses == others).mean() < 0.7  # .2² + .1² + .7² = .54 by chance


def test_official_split_wins_and_a_torn_patient_is_refused() -> None:
    dataset = dataset_of(["a", "b"], images_each=2)
    official = np.array([2, 0, 2, 0], dtype=np.uint8)
    assert split_patients(replace(dataset, split=official), PUBLIC_KEY, study.Data()).tolist() == [2, 0, 2, 0]
    with pytest.raises(DataError, match="2 patients have images in two parts"):
        split_patients(replace(dataset, split=np.array([2, 0, 0, 1], dtype=np.uint8)), PUBLIC_KEY, study.Data())


def test_fractions_must_leave_training_patients() -> None:
    with pytest.raises(DataError, match="no patient for training"):
        split_patients(dataset_of(["a"]), PUBLIC_KEY, study.Data().model_copy(update={"test_fraction": 0.6, "validation_fraction": 0.45}))


def test_kermany_test_share(kermany: Dataset) -> None:
    split = split_patients(kermany, PUBLIC_KEY, study.Data())
    held_out = len(np.unique(kermany.patients[split == Split.TEST]))
    assert abs(held_out / 2846 - 0.2) < 0.03
    assert not set(kermany.patients[split == Split.TEST]) & set(kermany.patients[split == Split.TRAIN])
