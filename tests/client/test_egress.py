# SPDX-License-Identifier: Apache-2.0
"""The door: a line for each reply, durable before the reply may leave, whatever crashes, fills up or is damaged in between."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client import egress_chain
from client.egress import Incoming, release
from client.egress_audit import audit
from client.egress_chain import BEFORE_THE_FIRST, ROOM_BYTES
from client.ledger.book import Ledger
from client.ledger.receipts import ReceiptFile
from client.site_home import SiteHome
from common.errors import StorageError
from common.federation import NO_MESSAGE, NO_RUN, EgressStatement
from common.privacy.accountant import epsilon_rdp, event_from_json, event_to_json, poisson_gaussian, unprotected
from common.privacy.charge_book import ChargeKey, Line
from common.protocol import Refusal, RefusalCode, read_reply, shapes_of
from common.riders import payload_sha256
from tests.client.egress_site import (
    COUNTS_SHAPE,
    NAME,
    RUN,
    SITE,
    STRANGER,
    evaluated,
    incoming,
    instruction,
    lines_of,
    make_home,
    model,
    offered_study,
    refusal,
    send,
    statement_of,
    update,
    write_key,
)
from tests.client.test_full_disk import disk, fill, largest_file

__all__ = ["disk"]
EVENT = event_to_json(poisson_gaussian(0.2, 1.5, 4))


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return make_home(tmp_path / "home")


def ledger(home: SiteHome, *rounds: int, event: str = EVENT, line: Line = Line.TRAINING, sent: bool = False) -> Ledger:
    """A ledger that has charged these rounds of the run."""
    book = Ledger(home.ledger, SITE, ReceiptFile(home.receipts, SITE, ()))
    account = book.register({Line.TRAINING: ["p1"], Line.HELD_OUT: ["p2"]}, 1e-5)
    for number in rounds:
        key = ChargeKey(account, offered_study().id, RUN, number, instruction(number).sha256, line)
        book.reserve(key, event, 4)
        book.releasing(key, "b" * 64)
        if sent:
            book.sent(key)
    return book


def test_a_line_says_what_left(home: SiteHome) -> None:
    ledger(home, 1)
    reply = release(home, incoming(), update(), now=1234.5)
    (line,) = lines_of(home)
    assert (line.number, line.time, line.kind, line.code, line.round) == (1, 1234.5, "update", "", 1)
    assert (line.study_id, line.run_id, line.incoming_sha256) == (offered_study().id, RUN, instruction().sha256)
    assert line.payload_sha256 == payload_sha256(update()) == payload_sha256(reply)
    tensors = [tuple(field) for field in line.fields if field.dtype == "float32"]
    assert tensors == [("model/bias", "float32", (3,), 128 + 12), ("model/weight", "float32", (2, 3), 128 + 24)]
    names = {field.name for field in line.fields} - {"model/bias", "model/weight"}
    assert names == {
        "metrics/num-examples",
        *(f"wardround/{name}" for name in ("protocol", "kind", "run_id", "round", "site", "ledger_head")),
    }
    assert line.size_bytes == 140 + 152 + 8 + 8 + 8 + len("update") + len(RUN) + len(NAME), "without the two heads"
    assert (line.ledger_row, line.ledger_hash) == (0, BEFORE_THE_FIRST)
    assert line.epsilon == pytest.approx(epsilon_rdp([event_from_json(EVENT)], 1e-5))
    assert (line.previous, line.torn_bytes) == (BEFORE_THE_FIRST, 0)
    assert home.egress.stat().st_mode & 0o777 == 0o600


def test_the_reply_is_what_it_was_and_carries_the_signed_statement(home: SiteHome) -> None:
    for number in (1, 2):
        reply = release(home, incoming(number), update(number))
        read = read_reply(reply, run_id=RUN, round_number=number, shapes=shapes_of(model()))
        assert {name: array.tolist() for name, array in read.delta.items()} == {name: array.tolist() for name, array in model(0.25).items()}
        signed = statement_of(reply)
        statement = EgressStatement.verified(signed, SITE.signer.public_key)
        line = lines_of(home)[-1]
        assert statement == EgressStatement(
            study_id=offered_study().id,
            run_id=RUN,
            round=number,
            incoming_sha256=instruction(number).sha256,
            payload_sha256=payload_sha256(reply),
            number=number - 1,
            head=line.previous,
        )
        assert line.statement_sha256 == hashlib.sha256(signed.to_json().encode()).hexdigest()
    first, second = lines_of(home)
    assert second.previous == first.hash != BEFORE_THE_FIRST


def test_the_tensors_are_not_copied(home: SiteHome) -> None:
    reply = update()
    assert release(home, incoming(), reply)["model"] is reply["model"]


def test_each_kind_has_its_line(home: SiteHome) -> None:
    ledger(home, 1, event=event_to_json(poisson_gaussian(1.0, 3.0, 1)), line=Line.HELD_OUT)
    release(home, incoming(train=False), evaluated())
    release(home, incoming(train=False, counts_shape=COUNTS_SHAPE), evaluated(counts=True))
    release(home, Incoming.unread(), refusal(RefusalCode.PAUSED))
    plain, counted, refused = lines_of(home)
    assert (plain.kind, plain.epsilon, plain.ledger_row) == ("evaluated", None, None), "exact results stay, so nothing is spent"
    assert (counted.kind, counted.epsilon) == ("evaluated", pytest.approx(epsilon_rdp([poisson_gaussian(1.0, 3.0, 1)], 1e-5)))
    assert ("counts/counts", "int64", COUNTS_SHAPE, 128 + 64) in counted.fields
    assert (refused.kind, refused.code, refused.epsilon, refused.study_id, refused.run_id) == (
        "refusal",
        "PAUSED",
        None,
        NO_MESSAGE,
        NO_RUN,
    )


def test_epsilon_is_that_of_the_whole_account(home: SiteHome) -> None:
    book = ledger(home, 1, 2)
    other = ChargeKey(book.charges()[0].key.account, "another study", "run", 1, "c" * 64)
    book.reserve(other, EVENT, 4)
    settled = ChargeKey(book.charges()[0].key.account, "a third", "run", 1, "c" * 64)
    book.reserve(settled, EVENT, 4)
    book.settle_to_zero(settled)
    release(home, incoming(2), update(2))
    release(home, incoming(2), update(2), book=book)
    for line in lines_of(home):
        assert line.epsilon == pytest.approx(epsilon_rdp([event_from_json(EVENT)] * 3, 1e-5))


def test_epsilon_where_there_is_no_figure(home: SiteHome) -> None:
    release(home, incoming(), update())
    ledger(home, 1, event=event_to_json(unprotected()))
    release(home, incoming(), update())
    home.ledger.write_bytes(b"no database" * 100)
    release(home, incoming(), update())
    assert [line.epsilon for line in lines_of(home)] == ["unknown", "not protected", "unknown"]
    assert "ledger.sqlite" in home.log.read_text(encoding="utf-8")


def test_a_broken_policy_lets_a_code_out_and_no_content(home: SiteHome) -> None:
    home.config.write_text("name: [", encoding="utf-8")
    reply = release(home, incoming(), update())
    assert read_reply(reply, run_id=RUN, round_number=1, shapes={}) == Refusal(RefusalCode.TRAINING_FAILED, "")
    assert "site.yaml" in home.log.read_text(encoding="utf-8")


@pytest.mark.parametrize("key", ["missing", "open to others"])
def test_without_its_key_nothing_leaves(home: SiteHome, key: str) -> None:
    home.key.unlink() if key == "missing" else home.key.chmod(0o644)
    for reply in (update(), refusal()):
        with pytest.raises(StorageError, match=r"site\.key"):
            release(home, incoming(), reply)
    assert not home.egress.exists()


# Crashes: before, while and after the line is written.


def test_synced_before_it_is_released(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file, and for the first line the folder, are synced when release returns; with content, not before it is written."""
    synced: list[tuple[str, int]] = []
    real = os.fsync

    def fsync(handle: int) -> None:
        synced.append((str(Path(f"/proc/self/fd/{handle}").readlink()), os.fstat(handle).st_size))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    release(home, incoming(), update())
    size = home.egress.stat().st_size
    assert synced[:2] == [(str(home.egress), size), (str(home.folder), home.folder.stat().st_size)]
    synced.clear()
    release(home, incoming(2), update(2))
    assert synced == [(str(home.egress), home.egress.stat().st_size)]


def test_a_reply_that_was_never_sent_and_comes_again_is_a_second_line(home: SiteHome) -> None:
    """Killed between the line and the sending: the same bytes, asked for again, get a line and a statement of their own."""
    first, second = (statement_of(release(home, incoming(), update())) for _ in range(2))
    send(home, 2)
    release(home, incoming(), update())
    assert first != second
    lines = lines_of(home)
    assert lines[0].payload_sha256 == lines[1].payload_sha256 == lines[3].payload_sha256
    assert audit(home).again == {2: 1, 4: 1}


def test_the_same_code_for_another_message_is_not_again(home: SiteHome) -> None:
    release(home, incoming(1), refusal())
    release(home, incoming(2), refusal())
    release(home, incoming(2), refusal())
    assert audit(home).again == {3: 2}


@pytest.mark.parametrize("lines_before", [0, 1, 3])
@pytest.mark.parametrize("part", [1, 0.5, "all but the newline's line end"])
def test_a_torn_line_is_cut_off_and_said(home: SiteHome, lines_before: int, part: float | str) -> None:
    send(home, *range(1, lines_before + 1))
    whole = home.egress.read_bytes() if lines_before else b""
    send(home, 9)
    line = home.egress.read_bytes()[len(whole) :]
    length = 1 if part == 1 else len(line) // 2 if part == 0.5 else len(line) - 2
    home.egress.write_bytes(whole + line[:length])
    assert len(lines_of(home)) == lines_before, "a reader leaves it out"
    send(home, 4)
    found = lines_of(home)
    assert [each.torn_bytes for each in found] == [0] * lines_before + [length]
    assert found[-1].number == lines_before + 1
    assert home.egress.read_bytes().startswith(whole)
    assert audit(home).torn_bytes == length


def test_a_line_without_its_newline_only_is_kept(home: SiteHome) -> None:
    send(home, 1, 2)
    home.egress.write_bytes(home.egress.read_bytes()[:-1])
    assert len(lines_of(home)) == 2
    send(home, 3)
    assert [(line.round, line.torn_bytes) for line in lines_of(home)] == [(1, 0), (2, 0), (3, 0)]


def test_a_whole_line_that_is_not_the_next_one_is_torn_too(home: SiteHome) -> None:
    """Somebody put an old line without newline at the end: it is no line of this chain."""
    send(home, 1, 2)
    whole = home.egress.read_bytes()
    old = whole.splitlines()[0]
    home.egress.write_bytes(whole + old)
    assert len(lines_of(home)) == 2
    send(home, 3)
    assert [line.torn_bytes for line in lines_of(home)] == [0, 0, len(old)]


def test_zeros_after_a_power_cut_are_cut_off(home: SiteHome) -> None:
    send(home, 1)
    with home.egress.open("ab") as file:
        file.write(bytes(5000))
    send(home, 2)
    assert [line.torn_bytes for line in lines_of(home)] == [0, 5000]


HEAVY = {"torch", "dp_accounting", "scipy", "opacus", "sklearn"}
CHILD = """
import sys
import client.egress

print(*sys.modules, flush=True)
from pathlib import Path
from client.egress import release
from client.site_home import SiteHome
from tests.client.egress_site import incoming, update, statement_of

home = SiteHome(Path(sys.argv[1]))
for number in range(int(sys.argv[2]), int(sys.argv[2]) + 1000):
    signed = statement_of(release(home, incoming(number), update(number)))
    print(number, signed.sha256, flush=True)
"""


def start_child(home: SiteHome, first: int) -> subprocess.Popen[str]:
    place = Path(__file__).resolve().parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(home.folder), str(first)], stdout=subprocess.PIPE, text=True, cwd=place, env={**os.environ}
    )


def test_two_processes_that_are_killed(home: SiteHome) -> None:
    """Whatever a process had let out when it was killed has its line, in one chain, each line once. And the door loads nothing heavy."""
    children = [start_child(home, first) for first in (10_000, 20_000)]
    left: list[str] = []
    for child in children:
        assert child.stdout is not None
        assert not HEAVY & set(child.stdout.readline().split())
        left += [child.stdout.readline() for _ in range(15)]
    for child in children:
        child.kill()
        assert child.stdout is not None
        left += child.stdout.read().splitlines(keepends=True)
        child.wait()
        child.stdout.close()
    told = [line.split() for line in left if line.endswith("\n")]
    assert len(told) >= 30
    send(home, 1)
    lines = {line.statement_sha256: line for line in lines_of(home)}
    assert all(lines[digest].round == int(number) for number, digest in told)
    assert len(lines) == len(lines_of(home)) <= len(told) + 3
    rounds = [line.round for line in lines_of(home)[:-1]]
    assert sorted(number for number in rounds if number < 20_000) == list(range(10_000, 10_000 + sum(n < 20_000 for n in rounds)))


# Disks.


def home_on(disk: Path) -> SiteHome:
    """A home whose log has no room for another line in its last block."""
    home = make_home(disk)
    send(home, 1)
    while -home.egress.stat().st_size % 4096 > 400:
        send(home, 1)
    assert (home.folder / ".egress.jsonl.room").stat().st_size == ROOM_BYTES
    return home


def test_a_refusal_leaves_on_a_full_disk_in_the_room_that_was_kept(disk: Path) -> None:
    home = home_on(disk)
    fill(disk)
    reply = release(home, incoming(2), refusal(RefusalCode.PAUSED))
    assert read_reply(reply, run_id=RUN, round_number=2, shapes={}) == Refusal(RefusalCode.PAUSED, "")
    assert lines_of(home)[-1].code == "PAUSED"
    assert not home.log.exists(), "nothing went wrong"


def test_on_a_full_disk_an_update_stays_and_a_refusal_leaves(disk: Path) -> None:
    home = home_on(disk)
    before = home.egress.read_bytes()
    filler = fill(disk)
    big = {f"layer{number}": np.zeros(3, np.float32) for number in range(100)}
    asked = Incoming(offered_study().id, RUN, 2, instruction(2).sha256, shapes_of(big), None, True)
    reply = release(home, asked, _update_of(big))
    assert read_reply(reply, run_id=RUN, round_number=2, shapes={}) == Refusal(RefusalCode.TRAINING_FAILED, "")
    assert home.egress.read_bytes().startswith(before)
    assert [line.kind for line in lines_of(home)][-2:] == ["update", "refusal"]
    assert "DISK FULL" in home.log.read_text(encoding="utf-8")
    filler.unlink()
    assert release(home, asked, _update_of(big)) is not None
    assert [line.kind for line in lines_of(home)][-3:] == ["update", "refusal", "update"], "with space again nothing else is to be done"
    assert (home.folder / ".egress.jsonl.room").exists(), "and room is kept again"


def _update_of(delta: dict[str, np.ndarray]) -> Any:
    from common.protocol import Update

    return Update(RUN, 2, NAME, delta).to_records()


def test_when_no_line_can_be_written_nothing_leaves(home: SiteHome) -> None:
    send(home, 1)
    before = home.egress.read_bytes()
    with largest_file(len(before) + 100):
        for reply in (update(2), refusal()):
            with pytest.raises(StorageError, match=r"egress\.jsonl: File too large"):
                release(home, incoming(2), reply)
    assert home.egress.read_bytes() == before, "no part of a line stays"
    send(home, 2)
    assert [(line.round, line.torn_bytes) for line in lines_of(home)] == [(1, 0), (2, 0)]


def test_a_line_that_cannot_be_synced_is_withdrawn(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that fails: nobody knows whether the line lasts, so it is taken back and nothing leaves."""
    send(home, 1)
    before = home.egress.read_bytes()

    def broken(handle: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="Input/output error"):
        patch.setattr(egress_chain.os, "fsync", broken)
        release(home, incoming(2), update(2))
    assert home.egress.read_bytes() == before


def test_a_folder_that_cannot_be_written(home: SiteHome, tmp_path: Path) -> None:
    home.egress.mkdir()
    with pytest.raises(StorageError, match=r"cannot use .*egress\.jsonl"):
        release(home, incoming(), update())


# A log that somebody damaged, deleted or put back.


@pytest.mark.parametrize(
    "damage",
    [
        lambda last: last.replace(b'"round":2', b'"round":3'),
        lambda last: last[:50] + b"\n",
        lambda last: b"\n",
        lambda last: b"[]\n",
        lambda last: b'{"hash":1,"mac":2}\n',
        lambda last: b"[" * 100_000 + b"\n",
        lambda last: last.replace(b'"mac":"', b'"mac":"0'),
        lambda last: last.replace(b"{", b"{ ", 1),
    ],
)
def test_nothing_is_chained_to_a_damaged_end(home: SiteHome, damage: Callable[[bytes], bytes]) -> None:
    send(home, 1, 2)
    first, last = home.egress.read_bytes().splitlines(keepends=True)
    assert damage(last) != last
    home.egress.write_bytes(first + damage(last))
    damaged = home.egress.read_bytes()
    for reply in (update(3), refusal()):
        with pytest.raises(StorageError, match=r"the last line (was|cannot)"):
            release(home, incoming(3), reply)
    assert home.egress.read_bytes() == damaged
    home.egress.rename(home.folder / "egress-damaged.jsonl")
    send(home, 3)
    assert [line.number for line in lines_of(home)] == [1], "moved aside by IT, a new chain starts"


def test_another_key_does_not_go_on_with_this_chain(home: SiteHome) -> None:
    send(home, 1)
    write_key(home, STRANGER)
    with pytest.raises(StorageError, match="not written with this site's key"):
        release(home, incoming(2), refusal())


def test_the_end_is_found_in_a_long_log(home: SiteHome) -> None:
    """Only the end of the file is read: lines that are longer than one block, and a torn one behind them."""
    asked = {f"layer{number}.with.a.long.name.{'x' * 60}": np.zeros(3, np.float32) for number in range(1000)}
    message = Incoming(offered_study().id, RUN, 2, instruction(2).sha256, shapes_of(asked), None, True)
    for _ in range(3):
        release(home, message, _update_of(asked))
    assert home.egress.stat().st_size > 4 * 65536
    with home.egress.open("ab") as file:
        file.write(b"torn" * 30_000)
    send(home, 3)
    assert [line.torn_bytes for line in lines_of(home)] == [0, 0, 0, 120_000]


def test_the_lines_are_plain_json(home: SiteHome) -> None:
    send(home, 1)
    plain = json.loads(home.egress.read_text(encoding="utf-8"))
    assert {"time", "run_id", "round", "fields", "size_bytes", "payload_sha256", "epsilon", "previous", "hash", "mac"} <= set(plain)
