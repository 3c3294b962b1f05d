# SPDX-License-Identifier: Apache-2.0
"""Receipts for what left: only those count that this site's statement and the coordinator's signature hold up."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.egress import last_receipt_id, take_receipts
from client.egress_receipts import acknowledged
from client.site_home import SiteHome
from common.errors import StorageError
from common.federation import EgressReceipt, EgressStatement
from common.signed import Signed
from tests.client.egress_site import COORDINATOR, SITE, STRANGER, make_home, receipt, send

Item = dict[str, Any]


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return make_home(tmp_path / "home")


def test_receipts_are_kept_once_and_in_order(home: SiteHome) -> None:
    statements = send(home, 1, 2, 3)
    items = [receipt(number, signed) for number, signed in zip((7, 8, 12), statements, strict=True)]
    assert last_receipt_id(home) == 0
    taken = take_receipts(home, items[:2])
    assert (taken.kept, taken.problems, taken.last_id) == (2, (), 8)
    before = home.egress_receipts.read_bytes()
    assert take_receipts(home, items[:2]).kept == 0
    assert home.egress_receipts.read_bytes() == before
    assert take_receipts(home, [items[2], items[2]]).kept == 1
    assert last_receipt_id(home) == 12
    found, ignored = acknowledged(home)
    assert ([one.statement_sha256 for one in found], ignored) == ([signed.sha256 for signed in statements], 0)
    assert home.egress_receipts.stat().st_mode & 0o777 == 0o600


def test_nothing_new_touches_no_file(home: SiteHome) -> None:
    assert take_receipts(home, []).kept == 0
    assert not home.egress_receipts.exists()
    assert acknowledged(home) == ([], 0)


def bad_signature(item: Item, one: Signed, two: Signed) -> None:
    item["receipt"]["signature"] = "0" * 128


def another_statement(item: Item, one: Signed, two: Signed) -> None:
    """The receipt is genuine, but for another line."""
    item["statement"] = json.loads(two.to_json())


def invented_statement(item: Item, one: Signed, two: Signed) -> None:
    """A coordinator that claims that this site said something."""
    statement = EgressStatement.model_validate_json(one.record).model_copy(update={"number": 500})
    item.update(receipt(1, statement.signed(COORDINATOR.signer)))


def changed_statement(item: Item, one: Signed, two: Signed) -> None:
    item["statement"]["record"] = item["statement"]["record"].replace('"round":1', '"round":2')


def of_another_site(item: Item, one: Signed, two: Signed) -> None:
    """Genuine in everything, and south's: signed by it, acknowledged for it."""
    statement = EgressStatement.model_validate_json(one.record)
    item.update(receipt(1, statement.signed(STRANGER.signer), site="south"))


def named_for_another_site(item: Item, one: Signed, two: Signed) -> None:
    item.update(receipt(1, one, site="south"))


def by_another_coordinator(item: Item, one: Signed, two: Signed) -> None:
    item.update(receipt(1, one, STRANGER))


def by_the_site_itself(item: Item, one: Signed, two: Signed) -> None:
    item.update(receipt(1, one, SITE))


def with_another_number(item: Item, one: Signed, two: Signed) -> None:
    item.update(receipt(1, one, number=7))


def with_another_head(item: Item, one: Signed, two: Signed) -> None:
    item.update(receipt(1, one, head="e" * 64))


def a_statement_in_the_place_of_a_receipt(item: Item, one: Signed, two: Signed) -> None:
    """The coordinator's signature under another kind of record is no receipt."""
    statement = EgressStatement.model_validate_json(one.record)
    item["receipt"] = json.loads(statement.signed(COORDINATOR.signer).to_json())


def swapped(item: Item, one: Signed, two: Signed) -> None:
    item["statement"], item["receipt"] = item["receipt"], item["statement"]


def without_a_statement(item: Item, one: Signed, two: Signed) -> None:
    del item["statement"]


def with_more(item: Item, one: Signed, two: Signed) -> None:
    item["note"] = "x"


def no_number(item: Item, one: Signed, two: Signed) -> None:
    item["id"] = -1


FORGERIES: list[Callable[[Item, Signed, Signed], None]] = [
    bad_signature,
    another_statement,
    invented_statement,
    changed_statement,
    of_another_site,
    named_for_another_site,
    by_another_coordinator,
    by_the_site_itself,
    with_another_number,
    with_another_head,
    a_statement_in_the_place_of_a_receipt,
    swapped,
    without_a_statement,
    with_more,
    no_number,
]


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_a_forged_receipt_is_not_kept_and_not_believed(home: SiteHome, forge: Callable[[Item, Signed, Signed], None]) -> None:
    one, two = send(home, 1, 2)
    forged, good = receipt(1, one), receipt(2, two)
    forge(forged, one, two)
    taken = take_receipts(home, [forged, good])
    assert (taken.kept, len(taken.problems), taken.last_id) == (1, 1, 2), "the good one beside it counts"
    with home.egress_receipts.open("a", encoding="utf-8") as file:
        file.write(json.dumps(forged) + "\n")
    found, ignored = acknowledged(home)
    assert ([each.statement.round for each in found], ignored) == ([2], 1), "put into the file by hand it does not count either"


def test_what_is_no_receipt_in_the_file_is_left_out_and_counted(home: SiteHome) -> None:
    (one,) = send(home, 1)
    take_receipts(home, [receipt(1, one)])
    good = home.egress_receipts.read_bytes()
    home.egress_receipts.write_bytes(b"\n{}\nnot json\n" + b"\xff\n" + good + good[:40])
    found, ignored = acknowledged(home)
    assert (len(found), ignored) == (1, 4), "the torn last line is not counted"
    (two,) = send(home, 2)
    take_receipts(home, [receipt(2, two)])
    assert b"}{" not in home.egress_receipts.read_bytes(), "a torn line is removed before the next"
    assert len(acknowledged(home)[0]) == 2


def test_without_an_offer_no_key_is_known(home: SiteHome) -> None:
    """The key of receipts comes from a start record that the study key of the invitation signed, from nowhere else."""
    (one,) = send(home, 1)
    for path in home.studies.glob("*/offer.json"):
        path.unlink()
    taken = take_receipts(home, [receipt(1, one)])
    assert (taken.kept, taken.problems) == (0, ("egress receipt: no coordinator of an offered study signed it",))


def test_deleted_receipts_are_fetched_again(home: SiteHome) -> None:
    statements = send(home, 1, 2)
    items = [receipt(number, signed) for number, signed in enumerate(statements, start=1)]
    take_receipts(home, items)
    home.egress_receipts.unlink()
    assert last_receipt_id(home) == 0, "so the daemon asks for all of them"
    assert take_receipts(home, items).kept == 2


def test_they_are_synced(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = send(home, 1)
    synced: list[str] = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (synced.append(str(Path(f"/proc/self/fd/{handle}").readlink())), real(handle))[1])
    take_receipts(home, [receipt(1, one)])
    assert synced == [str(home.egress_receipts), str(home.folder)]


def test_a_file_that_cannot_be_used_is_named(home: SiteHome) -> None:
    (one,) = send(home, 1)
    home.egress_receipts.mkdir()
    for use in (lambda: take_receipts(home, [receipt(1, one)]), lambda: acknowledged(home), lambda: last_receipt_id(home)):
        with pytest.raises(StorageError, match=r"egress-receipts\.jsonl"):
            use()


def test_a_receipt_says_what_it_is_for() -> None:
    (fields,) = [set(EgressReceipt.model_fields)]
    assert fields == {"site", "statement_sha256", "number", "head", "received"}
