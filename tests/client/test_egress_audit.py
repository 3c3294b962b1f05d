# SPDX-License-Identifier: Apache-2.0
"""Forgeries of the log of what left: which of them the chain shows, which need receipts, and which nothing here can show.

Each test of something that is not seen is as important: what `egress --verify` says about it has to be true.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from client.egress import open_chain, release, statement_for
from client.egress_audit import Findings, audit, explain, newest_ledger_head, sentences
from client.egress_chain import BEFORE_THE_FIRST, ChainEnd, EgressChain, EgressLine
from client.ledger.book import Ledger
from client.ledger.receipts import ReceiptFile
from client.site_home import SiteHome
from common.crypto.secrets import Secret
from common.errors import InputError, StorageError
from common.privacy.accountant import event_to_json, poisson_gaussian
from common.privacy.charge_book import ChargeKey, Line
from common.protocol import Update
from common.riders import with_head
from tests.client.egress_site import (
    NAME,
    RUN,
    SITE,
    STRANGER,
    acknowledge,
    evaluated,
    incoming,
    lines_of,
    make_home,
    model,
    offered_study,
    receipt,
    refusal,
    send,
    write_key,
)

EVENT = event_to_json(poisson_gaussian(0.2, 1.5, 4))
Text = list[bytes]


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return make_home(tmp_path / "home")


def said(found: Findings) -> str:
    return "\n".join(sentences(found))


def rewrite(home: SiteHome, change: Callable[[EgressLine], EgressLine | None], secret: Secret = SITE) -> None:
    """A whole new chain that fits in itself, made from the old one by somebody with `secret`: `change` edits or drops each line."""
    lines = lines_of(home)
    home.egress.unlink()
    chain = EgressChain(home.egress, secret)
    for line in lines:
        changed = change(line)
        if changed is not None:
            chain.append(lambda end, changed=changed: follow(changed, end, secret))


def follow(line: EgressLine, end: ChainEnd, secret: Secret) -> EgressLine:
    """The line behind another end of a chain, with the statement that belongs to it there."""
    digest = statement_for(line, end.number, end.hash).signed(secret.signer).sha256
    return line.model_copy(update={"number": end.number + 1, "previous": end.hash, "statement_sha256": digest})


def other_round(line: EgressLine) -> EgressLine:
    return line.model_copy(update={"payload_sha256": "f" * 64}) if line.round == 2 else line


def edit(home: SiteHome, change: Callable[[Text], Text]) -> None:
    home.egress.write_bytes(b"".join(change(home.egress.read_bytes().splitlines(keepends=True))))


def test_a_whole_log(home: SiteHome) -> None:
    statements = send(home, 1, 2, 3)
    found = audit(home)
    assert (len(found.lines), found.problems, found.checked, found.covered) == (3, [], "chain alone", 0)
    assert "There is no receipt" in said(found) and "3 lines follow" in said(found)
    acknowledge(home, statements[:2])
    found = audit(home)
    assert (found.problems, found.checked, found.receipts, found.covered, found.acknowledged) == ([], "chain and receipts", 2, 2, {1, 2})
    assert "has the reply of line 2" in said(found)
    assert "Not seen: whether lines after 3 were cut off, or lines after 2 were rewritten" in said(found)


def test_an_empty_log_is_whole_and_says_what_that_means(home: SiteHome) -> None:
    found = audit(home)
    assert (found.problems, found.head) == ([], (0, BEFORE_THE_FIRST))
    assert "Not seen: whether lines were cut from the end" in said(found)


@pytest.mark.parametrize("receipted", [False, True])
@pytest.mark.parametrize(
    ("change", "where"),
    [
        pytest.param(lambda text: [text[0], text[1].replace(b'"round":2', b'"round":7'), text[2]], "line 2 was edited", id="edit"),
        pytest.param(lambda text: [text[0], text[2]], "line 2 does not follow", id="gap"),
        pytest.param(lambda text: text[1:], "line 1 does not follow", id="head cut off"),
        pytest.param(lambda text: [text[0], text[2], text[1]], "line 2 does not follow", id="order"),
        pytest.param(lambda text: [text[0], text[0], text[1], text[2]], "line 2 does not follow", id="doubled"),
        pytest.param(lambda text: [text[0], b"\n", *text[1:]], "line 2 cannot be read", id="empty line"),
        pytest.param(lambda text: [text[0], b"{}\n", *text[1:]], "line 2 cannot be read", id="foreign line"),
        pytest.param(lambda text: [text[0].replace(b",", b", ", 1), *text[1:]], "line 1 was edited", id="a blank"),
        pytest.param(lambda text: [text[0][:-2] + b',"x":1}\n', *text[1:]], "line 1 cannot be read", id="a fact more"),
        pytest.param(lambda text: [text[0], text[1][:40] + b"\n", text[2]], "line 2 cannot be read", id="torn in the middle"),
    ],
)
def test_the_chain_alone_shows_edits_and_gaps(home: SiteHome, change: Callable[[Text], Text], where: str, receipted: bool) -> None:
    statements = send(home, 1, 2, 3)
    if receipted:
        acknowledge(home, statements)
    edit(home, change)
    (problem,) = audit(home).problems
    assert f"{home.egress}: {where}" in problem
    assert "Receipts and ledger were not held against a damaged chain" in said(audit(home))


def test_an_edit_that_takes_its_hash_along_does_not_fit_the_next_line(home: SiteHome) -> None:
    """Somebody with the key edits line 2 and leaves the others: its hash is right, and line 3 names another."""
    send(home, 1, 2, 3)
    last = home.egress.read_bytes().splitlines(keepends=True)[2]
    rewrite(home, lambda line: other_round(line) if line.number < 3 else None)
    home.egress.write_bytes(home.egress.read_bytes() + last)
    assert "line 3 does not follow" in audit(home).problems[0]


def test_a_chain_that_was_rewritten_without_the_key(home: SiteHome) -> None:
    send(home, 1, 2, 3)
    lines = lines_of(home)
    write_key(home, STRANGER)
    home.egress.unlink()
    for line in lines:
        open_chain(home).append(lambda end, line=line: follow(other_round(line), end, STRANGER))
    write_key(home)
    assert "line 1 was not written with this site's key" in audit(home).problems[0]


def test_a_line_that_names_another_statement(home: SiteHome) -> None:
    """Rewritten with the key, but the statements left as they were, so that the receipts still find them."""
    statements = send(home, 1, 2)
    acknowledge(home, statements)
    lines = lines_of(home)
    home.egress.unlink()
    for line in lines:
        open_chain(home).append(
            lambda end, line=line: other_round(line).model_copy(update={"number": end.number + 1, "previous": end.hash})
        )
    assert "line 2 names another statement than the one about it" in audit(home).problems[0]


def test_a_cut_tail_is_not_seen_without_receipts_and_said_so(home: SiteHome) -> None:
    send(home, 1, 2, 3)
    edit(home, lambda text: text[:2])
    found = audit(home)
    assert found.problems == []
    assert "Not seen: whether lines were cut from the end, or the whole chain was rewritten" in said(found)


@pytest.mark.parametrize("kept", [0, 1, 2])
def test_a_cut_tail_is_seen_with_receipts(home: SiteHome, kept: int) -> None:
    acknowledge(home, send(home, 1, 2, 3))
    edit(home, lambda text: text[:kept])
    found = audit(home)
    assert len(found.missing) == 3 - kept
    (problem,) = found.problems
    assert f"{3 - kept} lines that the coordinator has acknowledged are not here, the first after line {kept} " in problem
    assert "lines were cut off" in problem
    assert "no line up to there was cut off" not in said(found)


def test_a_tail_behind_the_newest_receipt_is_not_seen_and_said_so(home: SiteHome) -> None:
    acknowledge(home, send(home, 1, 2, 3)[:2])
    edit(home, lambda text: text[:2])
    found = audit(home)
    assert found.problems == []
    assert "Not seen: whether lines after 2 were cut off" in said(found)


def test_the_last_acknowledged_line_itself_cannot_be_cut(home: SiteHome) -> None:
    """The receipt names the head before the reply's line; the statement's digest stands for the line itself."""
    acknowledge(home, send(home, 1, 2))
    edit(home, lambda text: text[:1])
    assert len(audit(home).missing) == 1


def test_a_rewritten_chain_is_not_seen_without_receipts_and_said_so(home: SiteHome) -> None:
    send(home, 1, 2, 3)
    rewrite(home, other_round)
    found = audit(home)
    assert found.problems == []
    assert "the whole chain was rewritten by somebody with the site's key" in said(found)


@pytest.mark.parametrize(
    ("change", "missing"),
    [
        pytest.param(other_round, 2, id="other bytes in line 2"),
        pytest.param(lambda line: None if line.round == 2 else line, 2, id="line 2 left out"),
        pytest.param(lambda line: line.model_copy(update={"epsilon": 0.0, "size_bytes": 0}), 2, id="facts that no statement has"),
        pytest.param(lambda line: line.model_copy(update={"time": 0.0}) if line.number == 1 else line, 2, id="time of line 1"),
    ],
)
def test_a_rewritten_chain_is_seen_with_receipts(home: SiteHome, change: Callable[[EgressLine], EgressLine | None], missing: int) -> None:
    acknowledge(home, send(home, 1, 2, 3))
    rewrite(home, change)
    found = audit(home)
    assert len(found.missing) == missing
    assert "the chain was rewritten, or went on" in found.problems[0]


def test_what_a_receipt_does_not_fix_is_said(home: SiteHome) -> None:
    """Of the last acknowledged line the receipt fixes what its statement says, and no more: its time can be forged with the key."""
    acknowledge(home, send(home, 1, 2))
    rewrite(home, lambda line: line.model_copy(update={"time": 5.0}) if line.number == 2 else line)
    found = audit(home)
    assert found.problems == []
    assert "study, run, round, message and bytes of line 2 are what it received" in said(found)


def test_a_rewrite_behind_the_newest_receipt_is_not_seen_and_said_so(home: SiteHome) -> None:
    acknowledge(home, send(home, 1, 2, 3)[:1])
    rewrite(home, other_round)
    found = audit(home)
    assert found.problems == []
    assert "lines after 1 were rewritten with the site's key" in said(found)


def test_receipts_of_another_site_or_with_another_signature_show_nothing(home: SiteHome) -> None:
    statements = send(home, 1, 2)
    forged = [receipt(1, statements[0], STRANGER), receipt(2, statements[1], site="south")]
    home.egress_receipts.write_text("".join(json.dumps(item, sort_keys=True) + "\n" for item in forged), encoding="utf-8")
    edit(home, lambda text: text[:1])
    found = audit(home)
    assert (found.problems, found.receipts, found.receipts_ignored, found.checked) == ([], 0, 2, "chain alone")
    assert "2 lines of egress-receipts.jsonl are not receipts that count" in said(found)


@pytest.mark.parametrize("deleted", [True, False], ids=["deleted", "restored from an old copy"])
def test_a_lost_log_goes_on_and_shows_with_receipts_until_it_is_explained(home: SiteHome, deleted: bool) -> None:
    statements = send(home, 1)
    old = home.egress.read_bytes()
    statements += send(home, 2, 3)
    acknowledge(home, statements)
    home.egress.unlink() if deleted else home.egress.write_bytes(old)
    later = send(home, 4, 5)
    assert [line.number for line in lines_of(home)] == ([1, 2] if deleted else [1, 2, 3])
    found = audit(home)
    assert len(found.missing) == (3 if deleted else 2) and found.problems
    with pytest.raises(InputError, match="say why"):
        explain(home, "  ", 1.0)
    assert explain(home, "the server was restored from Sunday's backup", 1e9) == len(found.missing)
    acknowledge(home, later, first_id=10)
    acknowledge(home, send(home, 6), first_id=20)
    found = audit(home)
    assert (found.problems, found.explained, found.missing) == ([], 3 if deleted else 2, [])
    assert "acknowledged lines are not here, and hospital IT has said why" in said(found)
    note = next(line for line in found.lines if line.kind == "note")
    assert (note.note, note.fields, note.number) == ("the server was restored from Sunday's backup", (), len(found.lines) - 1)
    with pytest.raises(InputError, match="nothing to explain"):
        explain(home, "again", 1.0)
    edit(home, lambda text: text[:-1])
    assert len(audit(home).missing) == 1, "what is lost after the explanation is not explained by it"


def test_log_and_receipts_deleted_shows_as_soon_as_the_receipts_are_fetched_again(home: SiteHome) -> None:
    statements = send(home, 1, 2)
    acknowledge(home, statements)
    home.egress.unlink()
    home.egress_receipts.unlink()
    found = audit(home)
    assert found.problems == [] and "There is no receipt" in said(found)
    acknowledge(home, statements)
    assert len(audit(home).missing) == 2


def test_a_message_that_was_answered_twice_is_shown_as_again(home: SiteHome) -> None:
    first, second = send(home, 1, 1)
    acknowledge(home, [second])
    found = audit(home)
    assert (found.again, found.acknowledged, found.problems) == ({2: 1}, {2}, [])
    assert "1 lines are for bytes that were answered before (again)" in said(found)
    acknowledge(home, [first], first_id=2)
    assert audit(home).acknowledged == {1, 2}, "if the first one arrived too, late"


# The ledger as a witness.


def charge(home: SiteHome, *rounds: int, line: Line = Line.TRAINING, sent: bool = True) -> Ledger:
    book = Ledger(home.ledger, SITE, ReceiptFile(home.receipts, SITE, ()))
    account = book.register({Line.TRAINING: ["p1"], Line.HELD_OUT: ["p2"]}, 1e-5)
    for number in rounds:
        key = ChargeKey(account, offered_study().id, RUN, number, "a" * 64, line)
        book.reserve(key, EVENT, 4)
        book.releasing(key, "b" * 64)
        if sent:
            book.sent(key)
    return book


def test_what_the_ledger_says_was_sent_has_a_line(home: SiteHome) -> None:
    charge(home, 1, 2)
    send(home, 1, 2)
    unwritten = charge(home, 3, sent=False)
    problems = [problem for problem in audit(home).problems if "sent" in problem]
    assert problems == [], "round 3 may never have left: that is no problem"
    unwritten.sent(unwritten.charges()[-1].key)
    assert any("1 replies were sent which have no line, the first in run abababab round 3" in each for each in audit(home).problems)


def test_a_histogram_that_was_sent_needs_a_line_of_its_own(home: SiteHome) -> None:
    charge(home, 1)
    charge(home, 1, line=Line.HELD_OUT)
    release(home, incoming(), Update(RUN, 1, NAME, model()).to_records())
    assert any("1 replies were sent" in each for each in audit(home).problems)
    release(home, incoming(train=False), evaluated())
    assert audit(home).problems == []


def test_a_ledger_that_is_older_than_the_newest_line_is_found(home: SiteHome) -> None:
    book = charge(home, 1)
    fold = book.fold()
    release(home, incoming(), with_head(Update(RUN, 1, NAME, model()).to_records(), book.signed_head()))
    release(home, incoming(2), refusal())
    assert newest_ledger_head(lines_of(home)) == (fold.number, fold.head)
    assert audit(home).problems == []
    home.ledger.unlink()
    charge(home)
    assert f"does not have row {fold.number} that was its head when a reply left" in audit(home).problems[0]


def test_a_ledger_that_cannot_be_read_is_said(home: SiteHome) -> None:
    send(home, 1)
    home.ledger.write_bytes(b"no database" * 100)
    found = audit(home)
    assert found.problems == []
    assert "Not seen: whether everything that the ledger says was sent has a line (" in said(found)


def test_receipts_that_cannot_be_checked_are_said(home: SiteHome) -> None:
    acknowledge(home, send(home, 1))
    home.invitation.write_text("{}", encoding="utf-8")
    found = audit(home)
    assert (found.problems, found.receipts) == ([], 0)
    assert "Not seen: the receipts (" in said(found)


def test_without_the_key_nothing_can_be_checked(home: SiteHome) -> None:
    send(home, 1)
    home.key.unlink()
    with pytest.raises(StorageError, match=r"site\.key"):
        audit(home)
