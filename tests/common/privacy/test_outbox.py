# SPDX-License-Identifier: Apache-2.0
import hashlib
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import StorageError
from common.privacy.charges import ChargeKey, Line, Outbox

KEY = ChargeKey("account", "study/../..", "run id with spaces", 3, "0" * 64)


def test_a_reply_comes_back_byte_for_byte(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "outbox")
    reply = bytes(range(256)) * 100
    assert outbox.load(KEY) is None
    assert outbox.store(KEY, reply) == hashlib.sha256(reply).hexdigest()
    assert Outbox(tmp_path / "outbox").load(KEY) == reply
    assert all(path.parent == tmp_path / "outbox" for path in tmp_path.rglob("*.reply"))


def test_an_unreleased_reply_is_replaced_and_keys_do_not_meet(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.store(KEY, b"first attempt")
    outbox.store(KEY, b"second attempt")
    others = [replace(KEY, line=Line.HELD_OUT), replace(KEY, message_sha256="1" * 64), replace(KEY, run_id="other")]
    for other in others:
        assert outbox.load(other) is None
        outbox.store(other, b"other")
    assert outbox.load(KEY) == b"second attempt"
    assert outbox.load(replace(KEY, account="merged")) == b"second attempt", "an account may get another name"


def test_damage_is_found(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.store(KEY, b"reply")
    (path,) = tmp_path.glob("*.reply")
    for content in (b"", path.read_bytes()[:-1], path.read_bytes()[:-1] + b"x"):
        path.write_bytes(content)
        with pytest.raises(StorageError, match="damaged"):
            outbox.load(KEY)


def test_earlier_rounds_of_the_run_are_discarded_and_nothing_else(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    kept = [replace(KEY, round=2), replace(KEY, round=11), replace(KEY, run_id="other", round=0), replace(KEY, study_id="other", round=0)]
    gone = [replace(KEY, round=0), replace(KEY, round=1)]
    for each in (*kept, *gone):
        outbox.store(each, b"reply")
    outbox.discard_before(KEY.study_id, KEY.run_id, 2)
    assert [outbox.load(each) for each in kept] == [b"reply"] * 4
    assert [outbox.load(each) for each in gone] == [None, None]


def test_discarding_from_an_outbox_that_was_never_used(tmp_path: Path) -> None:
    Outbox(tmp_path / "none").discard_before("study", "run", 5)
