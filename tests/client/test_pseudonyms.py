# SPDX-License-Identifier: Apache-2.0
"""One name for a patient at a site: that of the ledger, whatever file the patient comes from."""

import hashlib
import hmac
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.ledger.book import PSEUDONYM_PURPOSE
from client.pseudonyms import PREFIX, PURPOSE, Pseudonyms, is_pseudonym
from common.crypto.secrets import Secret
from common.errors import DataError
from common.privacy.charge_book import Line
from tests.client.ledger.support import DELTA, SITE, open_book

NAMES = Pseudonyms(SITE)


def test_a_pseudonym_is_the_hmac_that_the_ledger_makes() -> None:
    expected = hmac.new(SITE.derive("patient pseudonyms"), b"P-17", hashlib.sha256).hexdigest()
    assert NAMES.of("P-17") == "wrp1-" + expected and PURPOSE == PSEUDONYM_PURPOSE
    assert NAMES.of(" P-17\t") == NAMES.of("P-17"), "spaces around an id are no part of it"
    assert Pseudonyms(Secret(b"x" * 32)).of("P-17") != NAMES.of("P-17")


@given(st.text(min_size=1).filter(lambda text: text.strip() != ""))
def test_a_pseudonym_of_a_pseudonym_is_itself(identifier: str) -> None:
    try:
        identifier.encode()
    except UnicodeEncodeError:
        return
    one = NAMES.of(identifier)
    assert re.fullmatch(PREFIX + "[0-9a-f]{64}", one) and is_pseudonym(one) and NAMES.of(one) == one


def test_an_old_ledger_gives_the_same_accounts(tmp_path: Path) -> None:
    old = open_book(tmp_path).register({Line.TRAINING: ["a", "b"], Line.HELD_OUT: ["c"]}, DELTA)
    book = open_book(tmp_path)
    assert book.register({Line.TRAINING: [NAMES.of("a")], Line.HELD_OUT: [NAMES.of("c")]}, DELTA) == old
    assert len(book.rows()) == 1, "nobody of them was new"
    assert book.register({Line.TRAINING: ["  a", "b "]}, DELTA) == old, "a raw file with spaces around its ids is no other account"
    assert book.register({Line.TRAINING: ["wrp1-" + "0" * 63]}, DELTA) != old, "not quite a pseudonym is an id like any other"


def test_an_empty_id_and_one_person_under_two_names_are_refused() -> None:
    with pytest.raises(DataError, match="is empty"):
        NAMES.of("  ")
    assert NAMES.of_all(("a", "b")) == (NAMES.of("a"), NAMES.of("b"))
    with pytest.raises(DataError, match="1 patients stand in the data under two names"):
        NAMES.of_all(("a", "b", NAMES.of("a")))
