# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.cohort import Dataset, IntArray, Split
from common.errors import InputError
from simulations.partition import Partition, cohort_for, default_partition, majority_labels, parse_partition


def dataset_of(patients: int, seed: int = 0, columns: dict[str, Any] | None = None, natural: str | None = None) -> Dataset:
    """Patients with 1 to 4 images each, in mixed order; patient p has label p % 2 mostly."""
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.repeat(np.arange(patients), rng.integers(1, 5, patients)))
    labels = np.where(rng.random(len(owner)) < 0.9, owner % 2, 1 - owner % 2)
    facts = {name: np.asarray(values)[owner] for name, values in (columns or {}).items()}
    ids = tuple(f"p{n}" for n in range(patients))
    return Dataset(np.zeros((len(owner), 1, 2, 2), np.uint8), labels, owner, ids, ("normal", "opacity"), facts, None, natural, False, "")


def patients_of(dataset: Dataset, groups: list[IntArray]) -> list[set[int]]:
    return [set(dataset.patients[rows].tolist()) for rows in groups]


@pytest.mark.parametrize("text", ["iid", "dirichlet:0.3", "quantity:2", "column:scanner", "column:a:b"])
def test_text_comes_back(text: str) -> None:
    assert str(parse_partition(text)) == text


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("idd", "did you mean iid"),
        ("dirichelt:0.3", "did you mean dirichlet:A"),
        ("dirichlet", "number above 0"),
        ("quantity:-1", "number above 0"),
        ("dirichlet:nan", "number above 0"),
        ("dirichlet:inf", "number above 0"),
        ("column", "did you mean column:NAME"),
        ("iid:3", "did you mean iid"),
        ("xyz", "--help"),
    ],
)
def test_other_texts_are_refused_with_a_hint(text: str, hint: str) -> None:
    with pytest.raises(InputError, match=hint):
        parse_partition(text)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["iid", "dirichlet:0.05", "dirichlet:1", "quantity:0.1", "quantity:5"]),
    st.integers(1, 6),
    st.integers(48, 120),
    st.integers(0, 2**63 - 1),
)
def test_exact_cover_by_whole_patients_the_same_each_time(text: str, sites: int, patients: int, seed: int) -> None:
    dataset, partition = dataset_of(patients), parse_partition(text)
    groups = partition.assign(dataset, sites, seed, least_patients=8)
    assert len(groups) == sites
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(dataset)))
    owners = patients_of(dataset, groups)
    assert sum(map(len, owners)) == patients  # no patient at two sites
    assert min(map(len, owners)) >= 8
    again = partition.assign(dataset, sites, seed, least_patients=8)
    assert all(np.array_equal(a, b) for a, b in zip(groups, again, strict=True))


def test_seed_and_shape_of_each_kind() -> None:
    dataset = dataset_of(2000)
    labels = majority_labels(dataset)

    def owners(text: str, seed: int = 0) -> list[list[int]]:
        return [sorted(group) for group in patients_of(dataset, parse_partition(text).assign(dataset, 4, seed))]

    assert owners("iid", 0) != owners("iid", 1)
    assert [len(group) for group in owners("iid")] == [500] * 4

    def share_spread(text: str) -> float:
        return float(np.mean([np.std([labels[group].mean() for group in owners(text, seed)]) for seed in range(5)]))

    assert share_spread("iid") < 0.03 < 0.2 < share_spread("dirichlet:0.2") and share_spread("dirichlet:1000") < 0.05
    assert share_spread("quantity:0.5") < 0.12
    assert max(map(len, owners("quantity:0.5"))) > 2 * min(map(len, owners("quantity:0.5")))
    assert max(map(len, owners("quantity:100000"))) - min(map(len, owners("quantity:100000"))) < 30


@pytest.mark.parametrize("text", ["iid", "dirichlet:0.1", "quantity:0.5"])
def test_a_hundred_sites_of_forty_patients(text: str) -> None:
    dataset = dataset_of(4000)
    sizes = [len(group) for group in patients_of(dataset, parse_partition(text).assign(dataset, 100, 3))]
    assert len(sizes) == 100 and sum(sizes) == 4000 and min(sizes) >= 16
    assert text != "iid" or set(sizes) == {40}


def test_majority_label_with_a_tie() -> None:
    owner, labels = np.array([0, 0, 0, 1, 1, 2]), np.array([1, 1, 0, 1, 0, 1])
    dataset = Dataset(np.zeros((6, 1, 2, 2), np.uint8), labels, owner, ("a", "b", "c"), ("x", "y"), {}, None, None, False, "")
    assert majority_labels(dataset).tolist() == [1, 0, 1]


def test_column_makes_the_real_sites() -> None:
    scanner = np.array(["Site B / 2", "Site A"] * 20)
    dataset = dataset_of(40, columns={"scanner": scanner}, natural="scanner")
    partition = default_partition(dataset)
    assert str(partition) == "column:scanner" and partition.site_names(dataset, None) == ["site-a", "site-b-2"]
    for rows, value in zip(partition.assign(dataset, None, 0), ("Site A", "Site B / 2"), strict=True):
        assert set(dataset.columns["scanner"][rows]) == {value}
    assert len(partition.assign(dataset, 2, 7)) == 2
    with pytest.raises(InputError, match=r"has 2 values.*leave out --sites, or add --partition iid"):
        partition.assign(dataset, 3, 0)
    assert str(default_partition(dataset_of(40))) == "iid"


def test_column_that_cannot_make_sites() -> None:
    dataset = dataset_of(40, columns={"scanner": ["a b", "a-b"] * 20})
    with pytest.raises(InputError, match="did you mean column:scanner"):
        Partition("column", column="scaner").assign(dataset, None, 0)
    with pytest.raises(InputError, match="no different site names"):
        Partition("column", column="scanner").site_names(dataset, None)
    torn = Dataset(**{**dataset.__dict__, "columns": {"view": np.arange(len(dataset)) % 2}})
    with pytest.raises(InputError, match="at two sites"):
        Partition("column", column="view").assign(torn, None, 0)


def test_a_column_of_many_numbers_is_no_site() -> None:
    dataset = dataset_of(60, columns={"age": np.arange(60) / 2, "ward": np.arange(60) % 50, "code": [f"c{n}" for n in range(60)]})
    for refused in (Partition("column", column="age").assign, lambda *_: Partition("column", column="age").site_names(dataset, None)):
        with pytest.raises(InputError, match=r"column:age: has 60 different numbers.*--partition iid"):
            refused(dataset, None, 0)
    assert len(Partition("column", column="ward").assign(dataset, None, 0)) == 50
    assert len(Partition("column", column="code").assign(dataset, None, 0)) == 60


def test_too_few_patients() -> None:
    with pytest.raises(InputError, match="ask for 3 or fewer"):
        Partition("quantity", alpha=1).assign(dataset_of(50), 4, 0, least_patients=16)
    with pytest.raises(InputError, match="at least one site"):
        Partition("iid").assign(dataset_of(50), 0, 0)


def test_cohort_for_takes_the_rows_of_the_split() -> None:
    dataset = dataset_of(40)
    split = (dataset.patients % 2 * int(Split.TEST)).astype(np.uint8)
    rows = Partition("iid").assign(dataset, 2, 0)[0]
    cohort = cohort_for(dataset, rows, split)
    assert set(dataset.patients[cohort.rows_in(Split.TEST)] % 2) == {1}
    assert cohort.patient_count(Split.TRAIN) + cohort.patient_count(Split.TEST) == 20
