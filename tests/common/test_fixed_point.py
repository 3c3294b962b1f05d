# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from common.errors import ProtocolError
from common.fixed_point import MAX_TERMS, VALUE_LIMIT, WEIGHT_UNITS, FixedPointSum, decode, encode

FLOATS = st.floats(-1000, 1000, width=32)


def one(value: float) -> dict[str, np.ndarray]:
    return {"w": np.array([value], np.float32)}


def total_of(values: list[float], weights: list[int] | None = None) -> float:
    total = FixedPointSum({"w": (1,)})
    for value, weight in zip(values, weights or [WEIGHT_UNITS] * len(values), strict=True):
        total.add(one(value), weight)
    return float(total.mean()["w"][0])


def test_hand_computed() -> None:
    assert encode(np.array([1.0, -0.5, 2.0**-32], np.float32)).tolist() == [1 << 32, -(1 << 31), 1]
    assert decode(np.array([3 << 32]), 2.0).tolist() == [1.5]
    assert total_of([1.0, 2.0, 6.0]) == 3.0
    assert total_of([1.0, 2.0], [WEIGHT_UNITS, WEIGHT_UNITS // 2]) == pytest.approx(4 / 3, rel=1e-7)


@given(st.lists(FLOATS, min_size=1, max_size=20), st.randoms())
def test_the_order_of_arrival_does_not_matter(values: list[float], random: object) -> None:
    shuffled = list(values)
    random.shuffle(shuffled)
    assert total_of(values) == total_of(shuffled)


@given(st.lists(st.tuples(FLOATS, st.integers(1, WEIGHT_UNITS)), min_size=1, max_size=10))
def test_nor_with_weights(terms: list[tuple[float, int]]) -> None:
    values, weights = [list(column) for column in zip(*terms, strict=True)]
    assert total_of(values, weights) == total_of(values[::-1], weights[::-1])


def test_a_float_sum_would_depend_on_it() -> None:
    values = np.array([1e8, 1.0, -1e8], np.float32)
    assert float((values[0] + values[1]) + values[2]) != float((values[0] + values[2]) + values[1])
    assert total_of([1000.0, 2.0**-20, -1000.0]) == total_of([1000.0, -1000.0, 2.0**-20]) == np.float32(2.0**-20 / 3)


@given(hnp.arrays(np.float32, 5, elements=FLOATS))
def test_one_update_comes_back_within_half_a_unit(values: np.ndarray) -> None:
    total = FixedPointSum({"w": (5,)})
    total.add({"w": values})
    assert np.abs(total.mean()["w"].astype(np.float64) - values).max() <= 2.0**-33


@pytest.mark.parametrize("value", [VALUE_LIMIT, -VALUE_LIMIT, np.inf, np.nan])
def test_a_value_outside_the_range_is_refused_and_changes_nothing(value: float) -> None:
    total = FixedPointSum({"w": (1,)})
    total.add(one(1.0))
    with pytest.raises(ProtocolError, match="range of the exact sum"):
        total.add(one(value))
    assert (total.terms, total.mean()["w"].tolist()) == (1, [1.0])


def test_the_largest_values_of_the_most_sites_do_not_overflow() -> None:
    total = FixedPointSum({"w": (1,)})
    largest = np.nextafter(np.float32(VALUE_LIMIT), np.float32(0))
    for _ in range(MAX_TERMS):
        total.add({"w": np.array([largest])})
    assert total.mean()["w"][0] == largest
    with pytest.raises(ProtocolError, match="more than 1024 updates"):
        total.add(one(0.0))


@pytest.mark.parametrize("weight", [0, -1, WEIGHT_UNITS + 1])
def test_a_weight_outside_its_range_is_refused(weight: int) -> None:
    with pytest.raises(ValueError, match="largest"):
        FixedPointSum({"w": (1,)}).add(one(1.0), weight)


def test_no_update_has_no_mean() -> None:
    with pytest.raises(ValueError, match="does not exist"):
        FixedPointSum({"w": (1,)}).mean()
