# SPDX-License-Identifier: Apache-2.0
"""Each site gets the receipt for its own newest head, signed; tensors are shared between the messages."""

import json
from pathlib import Path

import numpy as np
import pytest

from common.crypto.secrets import Secret
from common.crypto.signatures import is_signed
from common.errors import StorageError
from common.privacy.receipts import receipt_bytes
from common.protocol import Evaluated, Instruction
from common.riders import head_of, receipt_of, with_head, with_receipt
from server.receipts import Receipts, newest_receipt

INSTRUCTION = Instruction("run", "{}", 1, True, False, {"w": np.ones(3, np.float32)})


def reply(site: str, head: str):
    return with_head(Evaluated("run", 1, site).to_records(), head)


def test_a_receipt_goes_to_the_site_whose_head_it_is(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path)
    records = INSTRUCTION.to_records()
    assert receipts.attach("north", records) is records, "nothing to sign yet"
    receipts.take("north", reply("north", "old head"))
    receipts.take("north", reply("north", "head of north"))
    receipts.take("south", reply("south", "head of south"))
    receipts.save()
    for again in (receipts, Receipts(tmp_path)):
        for site in ("north", "south"):
            receipt = json.loads(receipt_of(again.attach(site, records)) or "")
            assert receipt["head"] == f"head of {site}"
            key = Secret.read(tmp_path / "coordinator.key").signer.public_key
            assert is_signed(key, receipt_bytes(receipt["head"]), receipt["signature"])
        assert receipt_of(again.attach("west", records)) is None


def test_messages_share_the_tensors_and_mean_the_same(tmp_path: Path) -> None:
    records = INSTRUCTION.to_records()
    one, other = with_receipt(records, "a"), with_receipt(records, "b")
    assert one["model"] is other["model"] is records["model"]
    assert Instruction.from_records(one).sha256 == Instruction.from_records(other).sha256 == INSTRUCTION.sha256
    assert receipt_of(records) is None, "the first message was not changed"


def test_a_site_that_asks_gets_the_receipt_for_its_newest_head(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path)
    assert newest_receipt(tmp_path, "north") is None
    receipts.take("north", reply("north", "head of north"))
    assert newest_receipt(tmp_path, "north") is None, "only what lasts"
    receipts.save()
    assert newest_receipt(tmp_path, "north") == receipt_of(receipts.attach("north", INSTRUCTION.to_records()))
    assert newest_receipt(tmp_path, "south") is None


def test_a_reply_without_a_head_changes_nothing(tmp_path: Path) -> None:
    receipts = Receipts(tmp_path)
    receipts.take("north", Evaluated("run", 1, "north").to_records())
    receipts.take("north", reply("north", "x" * (1 << 23)))
    receipts.save()
    assert not (tmp_path / "ledger-heads.json").exists()
    assert head_of(reply("north", "head")) == "head"


def test_damaged_heads_are_named(tmp_path: Path) -> None:
    (tmp_path / "ledger-heads.json").write_text("[1")
    with pytest.raises(StorageError, match=r"ledger-heads\.json"):
        Receipts(tmp_path)
