# SPDX-License-Identifier: Apache-2.0
"""`wardround-client ledger`, as hospital IT types it."""

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from client import cli
from client.ledger.book import Ledger
from client.site import SiteFile, key_path, open_ledger
from common.crypto.secrets import Secret
from common.files import write_atomic
from common.privacy.accountant import UNPROTECTED_JSON, epsilon_pld, event_to_json, poisson_gaussian
from common.privacy.charges import ChargeKey, Line
from common.privacy.receipts import make_receipt
from tests.client.ledger.support import COORDINATOR

EVENT = poisson_gaussian(0.15, 2.321, 100)


class Site:
    """A site's folder (without images: no command needs them), used through the command line."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        facts = SiteFile(
            name="north", dataset="nowhere", nominal_patients=2, epsilon_cap=8.0, coordinator_key=COORDINATOR.signer.public_key
        )
        write_atomic(folder / "site.json", facts.model_dump_json())
        Secret.ensure(key_path(folder))
        self.account = self.book.register({Line.TRAINING: ["p1"], Line.HELD_OUT: ["p2", "p3"]}, 1e-5)

    @property
    def book(self) -> Ledger:
        return open_ledger(self.folder)

    def charge(self, number: int, event: str = "", line: Line = Line.TRAINING) -> None:
        key = ChargeKey(self.account, "study", "run", number, "0" * 64, line)
        self.book.reserve(key, event or event_to_json(EVENT), 100)
        self.book.releasing(key, "1" * 64)

    def receipt(self) -> None:
        self.book.take_receipt(make_receipt(self.book.signed_head(), COORDINATOR.signer))

    def run(self, *arguments: str, expect: int = 0) -> str:
        command, *more = arguments
        assert cli.main(["ledger", command, str(self.folder), *more]) == expect
        out, err = self._capsys.readouterr()
        return out if expect == 0 else err

    def json(self, *arguments: str) -> dict:
        return json.loads(self.run(*arguments, "--json"))


@pytest.fixture
def site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Site:
    return Site(tmp_path, capsys)


def test_show_has_epsilon_cap_and_what_is_left(site: Site) -> None:
    site.charge(1)
    training, held_out = site.json("show")["accounts"]
    expected = epsilon_pld([EVENT], 1e-5)
    assert (training["epsilon"], training["cap"], training["left"]) == (expected, 8.0, 8.0 - expected)
    assert (held_out["epsilon"], held_out["charges"], held_out["patients"], held_out["line"]) == (0.0, 0, 2, "held-out")
    assert training["patients"] == 1
    table = site.run("show")
    assert site.account[:8] in table and f"{expected:.3f}" in table


def test_show_says_not_protected(site: Site) -> None:
    site.charge(1, UNPROTECTED_JSON)
    training, held_out = site.json("show")["accounts"]
    assert (training["protected"], training["epsilon"], training["left"]) == (False, None, None)
    assert held_out["protected"]
    assert "not protected" in site.run("show")


def test_verify_says_what_is_whole(site: Site) -> None:
    site.charge(1)
    site.receipt()
    facts = site.json("verify")
    assert (facts["rows"], facts["receipts"], facts["receipts_ignored"]) == (3, 1, 0)
    with (site.folder / "receipts.jsonl").open("a") as file:
        file.write("{}\n")
    assert "3 rows are whole; 1 receipts fit, 1 ignored" in site.run("verify")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("DROP TRIGGER rows_update", "rows_update is missing"),
        ("DROP TRIGGER rows_update; UPDATE rows SET content = replace(content, '100', '1') WHERE number = 2", "rows_update is missing"),
    ],
)
def test_verify_finds_damage(site: Site, damage: str, said: str) -> None:
    site.charge(1)
    with closing(sqlite3.connect(site.folder / "ledger.sqlite")) as database:
        database.executescript(damage)
    assert said in site.run("verify", expect=6)


def test_restore_and_recover(site: Site) -> None:
    shutil.copy(site.folder / "ledger.sqlite", site.folder / "backup")
    site.charge(1)
    site.receipt()
    shutil.copy(site.folder / "backup", site.folder / "ledger.sqlite")
    assert "LEDGER_BEHIND" in site.run("verify", expect=3)
    assert site.json("show")["behind"] is True and "recover" in site.run("show")
    assert "1 charges were missing and are charged again" in site.run("recover")
    nothing = {"receipts": 0, "charges": 0, "patients_lost": False, "left": 0}
    assert site.json("recover") == {**nothing, "asked": False, "not_asked": "", "was_restored": False}
    assert site.json("verify")["rows"] == 3
    assert site.json("show")["accounts"][0]["charges"] == 1


def test_write_off(site: Site) -> None:
    assert "say in words" in site.run("write-off", site.account[:6], "--reason", " ", expect=2)
    assert site.json("write-off", site.account[:6], "--reason", "withdrawn")["account"] == site.account
    assert site.json("show")["accounts"][0]["written_off"] is True


def test_export_has_every_row_and_no_pseudonym(site: Site) -> None:
    site.charge(1)
    rows = [json.loads(line) for line in site.run("export").splitlines()]
    assert [(row["number"], row["content"]["kind"]) for row in rows] == [(1, "PatientsEntry"), (2, "ChargeEntry"), (3, "ChargeEntry")]
    assert site.json("export")["rows"] == rows
    with closing(sqlite3.connect(site.folder / "ledger.sqlite")) as database:
        names = [bytes(name).hex() for (name,) in database.execute("SELECT pseudonym FROM patients")]
    assert len(names) == 3 and not any(name in json.dumps(rows) for name in names)


def test_a_folder_that_is_no_site(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ledger", "show", str(tmp_path)]) == 2
    assert "site.json" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["show", "verify", "recover", "write-off", "export"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ledger", command, "--help"]) == 0
    assert f"Example: wardround-client ledger {command}" in " ".join(capsys.readouterr().out.split())
