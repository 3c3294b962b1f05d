# SPDX-License-Identifier: Apache-2.0
"""A hospital's backup, its restore, and how the restored ledger learns from the coordinator what left in between."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict

from client import cli
from client.backup import LEDGER, LEFT_OUT, LINES, STUDY, WHOLE, back_up_site, restore_site
from client.egress import release
from client.enrol import prepare
from client.ledger.book import Ledger
from client.recovering import Outcome, recover_site
from client.site import open_ledger
from client.site_home import SiteHome
from common.crypto.certificates import Authority
from common.crypto.sealed_stream import LEAST_COST
from common.errors import CoordinatorRefused, CoordinatorUnreachable, RefusedError, StorageError
from common.privacy.charges import ChargeKey, Line, Standing, State
from common.privacy.receipts import make_receipt
from common.protocol import Update
from common.riders import with_head
from tests.client.egress_site import (
    COORDINATOR,
    NAME,
    RUN,
    STUDY_KEY,
    evaluated,
    incoming,
    model,
    offered_study,
    receipt,
    refusal,
    statement_of,
    write_key,
    write_offer,
)
from tests.client.enrolled import NOW, certified, invitation_to, new_authority
from tests.client.ledger.support import EVENT
from tests.support.tls_server import serving, write_server_certificate

PASSPHRASE = b"correct horse battery"
PREFIX = "/v1/wardround/"


class Coordinator:
    """What a coordinator keeps of this site: its newest ledger head, and its statements about replies."""

    def __init__(self) -> None:
        self.head: str | None = None
        self.items: list[dict[str, Any]] = []
        self.offers: list[dict[str, Any]] = []
        self.refuses = False

    def answer(self, _method: str, path: str, _body: bytes, _certificate: bytes | None) -> tuple[int, Any]:
        if self.refuses:
            return 403, {"code": "REVOKED", "error": "this site is revoked"}
        if path == f"{PREFIX}studies":
            return 200, {"studies": self.offers}
        after = int(path.removeprefix(f"{PREFIX}receipts?after="))
        text = None if self.head is None else make_receipt(self.head, COORDINATOR.signer)
        return 200, {"receipts": [item for item in self.items if item["id"] > after], "ledger": text}

    def take(self, reply: RecordDict, head: str | None) -> None:
        self.items.append(receipt(len(self.items) + 1, statement_of(reply)))
        self.head = head or self.head


class Site:
    """An enrolled hospital with one study, whose rounds are charged and leave as in the daemon."""

    def __init__(self, folder: Path, authority: Authority, url: str, coordinator: Coordinator) -> None:
        self.home, self.coordinator = SiteHome(folder), coordinator
        prepare(self.home, invitation_to(authority, url, study_key=STUDY_KEY.signer.public_key), NOW)
        write_key(self.home)
        certified(self.home, authority)
        write_offer(self.home, offered_study())
        offer = json.loads(self.home.offer(offered_study().id).read_text())
        coordinator.offers = [offer]
        (self.home.study(offered_study().id) / "site.json").write_text(
            json.dumps(
                {
                    "name": NAME,
                    "dataset": "none",
                    "nominal_patients": 5,
                    "home": "../..",
                    "coordinator_key": COORDINATOR.signer.public_key,
                }
            )
        )
        self.account = self.book.register({Line.TRAINING: ["p1", "p2"], Line.HELD_OUT: ["p3"]}, 1e-5)

    @property
    def book(self) -> Ledger:
        return open_ledger(self.home.folder)

    def key(self, number: int) -> ChargeKey:
        return ChargeKey(self.account, offered_study().id, RUN, number, incoming(number).sha256)

    def round(self, number: int, *, arrives: bool = True, head_is_kept: bool = True) -> None:
        """Charge, release, send; the coordinator has it unless it does not arrive."""
        book, one = self.book, self.key(number)
        book.reserve(one, EVENT, 4)
        book.releasing(one, "b" * 64)
        head = book.signed_head()
        update = Update(RUN, number, NAME, model(float(number))).to_records()
        reply = release(self.home, incoming(number), with_head(update, head), now=NOW)
        if arrives:
            self.coordinator.take(reply, head if head_is_kept else None)
            book.sent(one)

    def reserve(self, number: int) -> Standing:
        return self.book.reserve(self.key(number), EVENT, 4)

    def closed(self, number: int = 9) -> str:
        with pytest.raises(RefusedError, match="LEDGER_BEHIND") as error:
            self.reserve(number)
        return str(error.value)

    @property
    def paid(self) -> list[int]:
        return sorted(charge.key.round for charge in self.book.history(self.account, Line.TRAINING) if charge.state is not State.SETTLED)

    def back_up(self, path: Path) -> Path:
        back_up_site(self.home, path, PASSPHRASE, cost=LEAST_COST)
        return path

    def restore(self, path: Path, folder: Path) -> None:
        """The machine is gone; the backup comes back somewhere else."""
        restore_site(path, PASSPHRASE, folder)
        self.home = SiteHome(folder)

    def recover(self) -> Outcome:
        return recover_site(self.home.folder)


@pytest.fixture(scope="module")
def authority() -> Authority:
    return new_authority()


@pytest.fixture
def site(tmp_path: Path, authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    write_server_certificate(tmp_path / "server", authority)
    coordinator = Coordinator()
    with serving(tmp_path / "server", coordinator.answer) as server:
        yield Site(tmp_path / NAME, authority, server.url, coordinator)


def test_a_restored_site_stays_closed_until_the_coordinator_was_asked(site: Site, tmp_path: Path) -> None:
    site.round(1)
    file = site.back_up(tmp_path / "backup")
    site.round(2)
    site.round(3)
    site.restore(file, tmp_path / "new")
    assert site.paid == [1]
    assert "this site was restored from a backup" in site.closed()
    site.coordinator.refuses = True
    with pytest.raises(CoordinatorRefused) as refused:
        site.recover()
    assert "the ledger stays closed" in refused.value.__notes__[0]
    site.closed()
    site.coordinator.refuses = False
    outcome = site.recover()
    assert (outcome.recovered.receipts, outcome.recovered.charges, outcome.recovered.left) == (1, 2, 0), "exactly what the receipt says"
    assert (outcome.asked, outcome.was_restored) == (True, True)
    assert site.paid == [1, 2, 3]
    assert {charge.key.account for charge in site.book.charges()} == {site.account}
    assert not (site.home.folder / "restored.json").exists()
    with pytest.raises(RefusedError, match="ROUND_LOST"):
        site.reserve(3)
    assert site.reserve(4) is Standing.NEW
    assert site.recover().recovered.charges == 0


def test_nobody_answers(site: Site, tmp_path: Path) -> None:
    """A restored site stays closed; one whose ledger alone is old goes by its own log, and says that nobody was asked."""
    site.round(1)
    file = site.back_up(tmp_path / "backup")
    old = site.home.ledger.read_bytes()
    site.round(2)
    settings = site.home.config.read_text()
    site.home.config.write_text(settings.replace(settings.split("coordinator: ")[1].split()[0], "https://127.0.0.1:1"))
    site.home.ledger.write_bytes(old)
    site.closed()
    outcome = site.recover()
    assert (outcome.asked, outcome.recovered.left) == (False, 1) and "127.0.0.1" in outcome.not_asked
    assert site.paid == [1, 2] and site.reserve(3) is Standing.NEW
    policy = site.home.config.read_text()
    site.restore(file, tmp_path / "new")
    site.home.config.write_text(policy)
    with pytest.raises(CoordinatorUnreachable) as error:
        site.recover()
    assert "only the coordinator knows what left after it" in error.value.__notes__[0]
    site.closed()
    assert (site.home.folder / "restored.json").exists()


def test_a_reply_that_arrived_without_its_head_is_charged_all_the_same(site: Site, tmp_path: Path) -> None:
    """The coordinator was killed between its receipt for the reply and its note of the head."""
    site.round(1)
    file = site.back_up(tmp_path / "backup")
    site.round(2, head_is_kept=False)
    site.coordinator.take(release(site.home, incoming(3), refusal(), now=NOW), None)
    site.coordinator.take(release(site.home, incoming(3, train=False), evaluated(3), now=NOW), None)
    site.restore(file, tmp_path / "new")
    outcome = site.recover()
    assert (outcome.recovered.charges, outcome.recovered.left) == (0, 1), "a refusal and an evaluation without figures cost nothing"
    assert site.paid == [1, 2]
    assert {charge.event_json for charge in site.book.charges()} == {EVENT}


@pytest.mark.slow
def test_a_study_that_came_after_the_backup_is_charged_as_it_plans(site: Site, tmp_path: Path) -> None:
    offers = site.coordinator.offers
    for path in site.home.study(offered_study().id).iterdir():
        path.rename(tmp_path / path.name)
    file = site.back_up(tmp_path / "backup")
    site.home.study(offered_study().id).mkdir(exist_ok=True)
    for name in ("offer.json", "site.json"):
        (tmp_path / name).rename(site.home.study(offered_study().id) / name)
    site.round(1, head_is_kept=False)
    site.restore(file, tmp_path / "new")
    site.coordinator.offers = []
    with pytest.raises(RefusedError, match="LEDGER_BEHIND: 1 replies left that are not charged, and what they cost is not known here"):
        site.recover()
    site.closed()
    site.coordinator.offers = offers
    assert site.recover().recovered.left == 1
    (charge,) = site.book.charges()
    assert json.loads(charge.event_json)["count"] == charge.steps == offered_study().training.local_steps
    assert site.paid == [1]


def test_a_receipt_of_a_study_that_came_after_the_backup_counts(site: Site, tmp_path: Path) -> None:
    """Nobody at this site has approved it as far as the backup knows; its receipt key comes from the signed offer."""
    study = site.home.study(offered_study().id)
    for path in study.iterdir():
        path.rename(tmp_path / path.name)
    file = site.back_up(tmp_path / "backup")
    for name in ("offer.json", "site.json"):
        (tmp_path / name).rename(study / name)
    site.round(1)
    site.restore(file, tmp_path / "new")
    assert (site.recover().recovered, site.paid) == (site.recover().recovered.__class__(1, 1, False), [1])


# What is in it.


def test_everything_is_there_again_and_nothing_else(site: Site, tmp_path: Path) -> None:
    site.round(1)
    home = site.home.folder
    for name in (*WHOLE, *LINES):
        (home / name).exists() or (home / name).write_text("{}\n")
    (home / "outbox").mkdir()
    (home / "outbox" / "a.reply").write_bytes(b"an update")
    (home / "cache" / "datasets").mkdir(parents=True)
    for name in ("site.log", "daemon.json", "daemon.lock", "round.lock"):
        (home / name).write_text("x")
    with (home / "rounds.jsonl").open("a") as file:
        file.write('{"torn')
    site.restore(site.back_up(tmp_path / "backup"), tmp_path / "new")
    study = f"studies/{offered_study().id}"
    found = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*") if path.is_file()}
    assert found == {*WHOLE, *LINES, LEDGER, "restored.json", f"{study}/offer.json", f"{study}/site.json"}
    for name in found - {LEDGER, "restored.json", "rounds.jsonl"}:
        assert (tmp_path / "new" / name).read_bytes() == (home / name).read_bytes(), name
    assert (tmp_path / "new" / "rounds.jsonl").read_text() == "{}\n", "a torn line stays behind"
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "new").rglob("*"))
    assert [row.hash for row in open_ledger(tmp_path / "new").rows()] == [row.hash for row in open_ledger(home).rows()]
    assert b"an update" not in (tmp_path / "backup").read_bytes()


def test_every_file_of_a_hospital_is_in_the_backup_or_left_out_on_purpose() -> None:
    """What `client.site_home` names; a new file there has to be put into one of the lists."""
    home = SiteHome(Path("/"))
    named = {
        Path(getattr(home, name)).name
        for name, value in vars(SiteHome).items()
        if isinstance(value, property) and isinstance(getattr(home, name), Path)
    }
    assert named - {*WHOLE, *LINES, *LEFT_OUT, LEDGER, "studies"} == set()
    assert STUDY == ("offer.json", "site.json", "rows.npy", "split.npy")


def test_a_damaged_ledger_is_neither_backed_up_nor_restored(site: Site, tmp_path: Path) -> None:
    site.round(1)
    with closing(sqlite3.connect(site.home.ledger)) as database, database:
        database.execute("DROP TRIGGER rows_delete")
    with pytest.raises(StorageError, match="rows_delete is missing"):
        site.back_up(tmp_path / "backup")
    assert not (tmp_path / "backup").exists()


def test_with_another_key_nothing_is_restored(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import client.backup

    with monkeypatch.context() as patch:
        patch.setattr(client.backup, "WHOLE", tuple(name for name in WHOLE if name != "site.key"))
        file = site.back_up(tmp_path / "backup")
    with pytest.raises(StorageError, match=r"site\.key: cannot read the key"):
        site.restore(file, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_as_it_is_typed(site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    site.round(1)
    secret = tmp_path / "passphrase"
    secret.touch(0o600)
    secret.write_text("short\n")
    home, file, new = str(site.home.folder), str(tmp_path / "backup"), str(tmp_path / "new")
    backup = ["backup", file, "--home", home, "--passphrase-file", str(secret)]
    assert cli.main(backup) == 2 and "at least 12 characters" in capsys.readouterr().err
    secret.write_text("correct horse battery\n")
    assert cli.main([*backup, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"file": file, "size_bytes": Path(file).stat().st_size}
    assert cli.main(backup) == 2 and "never written over another file" in capsys.readouterr().err
    assert cli.main(["restore", file, home, "--passphrase-file", str(secret)]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert cli.main(["restore", file, new, "--passphrase-file", str(secret)]) == 0
    assert "ledger recover" in capsys.readouterr().out
    assert cli.main(["ledger", "verify", new]) == 3 and "LEDGER_BEHIND" in capsys.readouterr().err
    assert cli.main(["ledger", "recover", new]) == 0 and "may train again" in capsys.readouterr().out
    assert cli.main(["ledger", "verify", new]) == 0
