# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import InputError
from common.privacy.clipping import RowGroups, clip_and_sum, patient_norms, values_fit
from common.privacy.grid import GRID_BITS, SUMMATION_SLACK, grid_step, relative_sensitivity
from common.privacy.step import MicroBatch


def groups_of(patient: list[int], weight: list[float] | None = None, count: int | None = None) -> RowGroups:
    rows = len(patient)
    return RowGroups.of(
        MicroBatch(
            inputs=torch.zeros(rows, 1),
            targets=torch.zeros(rows),
            patient=torch.tensor(patient),
            weight=torch.tensor(weight or [1.0] * rows),
            patient_count=count or max(patient) + 1,
        )
    )


@pytest.mark.parametrize("patient", [[0, 1, 2, 3], [0, 0, 1, 1], [1, 0, 0, 1], [0, 0, 0, 1]], ids=str)
def test_rows_add_up_per_patient(patient: list[int]) -> None:
    rows = torch.arange(8.0).view(4, 2)
    expected = torch.zeros(max(patient) + 1, 2)
    for row, owner in zip(rows, patient, strict=True):
        expected[owner] += row
    assert torch.equal(groups_of(patient).add_up(rows.clone()), expected)


def test_padding_belongs_to_nobody() -> None:
    rows = torch.tensor([[1.0], [2.0], [math.nan]])
    assert groups_of([0, 1, 0], [1.0, 1.0, 0.0]).add_up(rows).tolist() == [[1.0], [2.0]]
    assert groups_of([0, 1], [1.0, 0.0]).add_up(rows[:2]).tolist() == [[1.0], [0.0]]


def test_the_norm_is_joint_over_all_parameters() -> None:
    patients = [torch.tensor([[3.0, 0.0], [1.0, 1.0]]), torch.tensor([[4.0], [1.0]])]
    assert patient_norms(patients).tolist() == [5.0, pytest.approx(math.sqrt(3), rel=1e-6)]


@pytest.mark.parametrize("size", [1, 127, 128, 129, 50_000])
def test_float32_norms_keep_their_bound(size: int) -> None:
    torch.manual_seed(size)
    values = torch.randn(3, size).exp() * torch.tensor([[1e-8], [1.0], [1e8]])
    exact = values.double().square().sum(1).sqrt()
    assert ((patient_norms([values]) / exact - 1).abs() < SUMMATION_SLACK / 2).all()


def test_clipping_by_hand() -> None:
    samples = [torch.tensor([[3.0, 4.0], [0.3, 0.4]])]  # norms 5 and 0.5
    clipped = clip_and_sum(samples, groups_of([0, 1]), clipping_norm=1.0, grid_bits=20)
    assert clipped.sums[0].dtype == torch.int64
    assert clipped.sums[0].tolist() == [round(0.6 * 2**20) + round(0.3 * 2**20), round(0.8 * 2**20) + round(0.4 * 2**20)]
    assert clipped.non_finite_count == 0


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 1e30])
def test_a_patient_that_is_not_finite_counts_as_zero(poison: float) -> None:
    samples = [torch.tensor([[poison, 1.0], [0.5, 0.0]]), torch.tensor([[1.0], [0.25]])]
    clipped = clip_and_sum(samples, groups_of([0, 1]), clipping_norm=1.0, grid_bits=20)
    assert [value.tolist() for value in clipped.sums] == [[2**19, 0], [2**18]]
    assert clipped.non_finite_count == 1


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(0, 2**31), st.sampled_from([1e-3, 0.7, 1.0, 37.0]), st.integers(-12, 12))
def test_one_patient_moves_the_sum_by_at_most_the_sensitivity(count: int, size: int, seed: int, norm: float, exponent: int) -> None:
    torch.manual_seed(seed)
    gradients = torch.randn(count, size) * 10.0**exponent
    everybody = clip_and_sum([gradients.clone()], groups_of(list(range(count))), norm, GRID_BITS).sums[0]
    without = torch.zeros(size, dtype=torch.int64)
    if count > 1:
        without = clip_and_sum([gradients[1:].clone()], groups_of(list(range(count - 1))), norm, GRID_BITS).sums[0]
    moved = (everybody - without).double().norm().item() * grid_step(norm)
    assert moved <= norm * relative_sensitivity(size)
    if gradients[0].norm() > norm * 1.001:
        assert moved == pytest.approx(norm, rel=1e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 70), st.integers(0, 2**31), st.data())
def test_the_sum_does_not_depend_on_order_or_micro_batches(count: int, seed: int, data: st.DataObject) -> None:
    torch.manual_seed(seed)
    gradients = torch.randn(count, 50)
    whole = clip_and_sum([gradients.clone()], groups_of(list(range(count))), 1.0, GRID_BITS).sums[0]
    shuffled = gradients[torch.randperm(count)]
    cut = data.draw(st.integers(1, count - 1))
    parts = [
        clip_and_sum([part.clone()], groups_of(list(range(len(part)))), 1.0, GRID_BITS).sums[0] for part in (shuffled[:cut], shuffled[cut:])
    ]
    assert torch.equal(whole, parts[0] + parts[1])


def test_many_patients_add_up_without_rounding() -> None:
    gradients = torch.tensor([[3.0, 4.0]]).repeat(1001, 1)
    expected = [1001 * round(0.6 * 2**20), 1001 * round(0.8 * 2**20)]
    assert clip_and_sum([gradients], groups_of(list(range(1001))), 1.0, GRID_BITS).sums[0].tolist() == expected


def test_what_does_not_fit_together_is_refused_all_at_once() -> None:
    batch = MicroBatch(torch.zeros(3, 1), torch.zeros(2), torch.tensor([0, 1]), torch.tensor([1.0, 1.0, 1.0]), 2, views=2)
    with pytest.raises(InputError) as error:
        RowGroups.of(batch)
    assert len(error.value.problems) == 3


@pytest.mark.parametrize(
    ("patient", "weight", "count", "views", "fits"),
    [
        ([0, 0, 1, 1], [0.5] * 4, 2, 2, True),
        ([0, 0, 1, 1, 0, 0], [0.5] * 4 + [0.0] * 2, 2, 2, True),
        ([1, 0, 1], [1.0, 1.0, 0.5], 2, None, True),
        ([0, 1, 0, 1], [0.5] * 4, 2, 2, False),
        ([0, 0, 1, 1], [0.5, 0.5, 0.5, 0.0], 2, 2, False),
        ([0, 0, 1, 1, 1, 1], [0.5] * 6, 2, 2, False),
        ([0, 2], [1.0, 1.0], 2, None, False),
        ([0, -1], [1.0, 1.0], 2, None, False),
        ([0, 1], [1.0, -1.0], 2, None, False),
        ([0, 1], [1.0, 1.5], 2, None, False),
        ([0, 1], [1.0, math.nan], 2, None, False),
    ],
)
def test_values_have_to_fit_too(patient: list[int], weight: list[float], count: int, views: int | None, fits: bool) -> None:
    rows = len(patient)
    batch = MicroBatch(torch.zeros(rows, 1), torch.zeros(rows), torch.tensor(patient), torch.tensor(weight), count, views)
    assert bool(values_fit(batch)) is fits


def test_padding_behind_ordered_views_is_left_out() -> None:
    batch = MicroBatch(torch.zeros(4, 1), torch.zeros(4), torch.tensor([0, 0, 1, 1]), torch.full((4,), 0.5), 2, views=2).padded(10)
    groups = RowGroups.of(batch)
    assert (len(batch.inputs), groups.slots, groups.views) == (10, 5, 2)
    rows = torch.arange(20.0).view(10, 2)
    assert groups.add_up(rows).tolist() == [[2.0, 4.0], [10.0, 12.0]]
    assert bool(values_fit(batch))
