# SPDX-License-Identifier: Apache-2.0
"""Refusals tell a code and nothing else."""

import pytest

from client.app import known_code
from common.protocol import RefusalCode


@pytest.mark.parametrize("code", ["CHARGE_STATE", "patient 42", "", "training_failed"])
def test_a_code_of_the_books_leaves_as_one_code(code: str) -> None:
    assert known_code(code) is RefusalCode.TRAINING_FAILED


def test_a_code_of_the_protocol_leaves_as_it_is() -> None:
    assert known_code("BUDGET_EXHAUSTED") is RefusalCode.BUDGET_EXHAUSTED
