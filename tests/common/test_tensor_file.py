# SPDX-License-Identifier: Apache-2.0
"""`common.tensor_file` against the library that reads the files."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load, save

from common.tensor_file import tensor_parts

NUMBERS = st.sampled_from(["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u4", "u8", "?"])
TENSORS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__"),
    hnp.arrays(NUMBERS, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)),
    max_size=5,
)


@given(TENSORS)
def test_the_bytes_are_those_of_the_library(tensors: dict[str, npt.NDArray[Any]]) -> None:
    assert b"".join(tensor_parts(tensors)) == save(tensors)


def test_metadata_and_tensors_come_back() -> None:
    tensors = {"weights": np.arange(6.0).reshape(2, 3), "steps": np.array(7)}
    parts = tensor_parts(tensors, {"round": "3", "record": '{"site":"Köln"}'})
    found = load(b"".join(parts))
    assert all(np.array_equal(found[name], value) for name, value in tensors.items())
    assert b'"round":"3"' in bytes(parts[0])


def test_a_tensor_is_not_copied_and_columns_are_put_in_rows() -> None:
    rows, columns = np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6.0).reshape(2, 3))
    parts = tensor_parts({"a": columns, "b": rows})
    assert np.shares_memory(np.frombuffer(parts[2]), rows)
    assert np.array_equal(load(b"".join(parts))["a"], columns)


def test_other_numbers_are_refused() -> None:
    with pytest.raises(TypeError, match="complex128"):
        tensor_parts({"a": np.zeros(2, np.complex128)})
