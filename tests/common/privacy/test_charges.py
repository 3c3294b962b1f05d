# SPDX-License-Identifier: Apache-2.0
"""The rules of a charge without any file; tests/client/ledger has them with the real ledger."""

import hashlib
from dataclasses import replace

import pytest

from common.errors import InputError, RefusedError
from common.privacy.accountant import UNPROTECTED_JSON, event_to_json, unprotected
from common.privacy.charge_book import Charge, ChargeFold, charge_from_plain, charge_to_plain
from common.privacy.charges import ChargeKey, Line, Standing, State

EVENT = '{"noise_multiplier":1.0,"type":"GaussianDpEvent"}'
KEY = ChargeKey("account", "study", "run", 0, hashlib.sha256(b"message").hexdigest())


@pytest.mark.parametrize(
    "change",
    [{"account": ""}, {"study_id": ""}, {"run_id": ""}, {"round": -1}, {"message_sha256": "abc"}],
    ids=str,
)
def test_senseless_keys_are_refused(change: dict) -> None:
    with pytest.raises(InputError, match="charge"):
        ChargeKey(**({"account": "a", "study_id": "s", "run_id": "r", "round": 0, "message_sha256": "0" * 64} | change))


def test_a_charge_comes_back_from_plain_values() -> None:
    charge = Charge(replace(KEY, line=Line.HELD_OUT), State.RELEASING, EVENT, 3, "0" * 64)
    assert charge_from_plain(charge_to_plain(charge)) == charge
    assert event_to_json(unprotected()) == UNPROTECTED_JSON


def test_a_row_that_could_not_have_been_written_is_refused() -> None:
    fold = ChargeFold()
    fold.apply(Charge(KEY, State.RESERVED, EVENT, 1))
    for impossible in (
        Charge(KEY, State.RESERVED, EVENT, 1),
        Charge(KEY, State.SENT, EVENT, 1),
        Charge(KEY, State.RELEASING, EVENT, 2, "0" * 64),
    ):
        with pytest.raises(RefusedError, match="CHARGE_STATE"):
            fold.apply(impossible)


def test_a_merged_account_is_the_same_account() -> None:
    fold = ChargeFold(lambda left, right: {left, right} <= {"account", "other name"} or left == right)
    fold.apply(Charge(KEY, State.RESERVED, EVENT, 1))
    assert fold.standing(replace(KEY, account="other name"), EVENT, 1) is Standing.RETRY
    with pytest.raises(RefusedError, match="ROUND_CONFLICT"):
        fold.standing(replace(KEY, account="stranger"), EVENT, 1)


def test_a_recovered_charge_costs_and_its_round_is_lost() -> None:
    fold = ChargeFold()
    unknown = replace(KEY, message_sha256="0" * 56 + "12345678")
    fold.apply(Charge(unknown, State.RECOVERED, EVENT, 1))
    for message in (KEY, unknown):
        with pytest.raises(RefusedError, match="ROUND_LOST"):
            fold.standing(message, EVENT, 1)
    fold.apply(Charge(replace(unknown, message_sha256="0" * 56 + "87654321"), State.RECOVERED, EVENT, 1))
    assert len(fold.charges) == 2, "two updates left for one round, so both are paid for"
