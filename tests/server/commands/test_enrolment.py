# SPDX-License-Identifier: Apache-2.0
"""init, invite and sites as the coordinator types them."""

import json
import stat
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from common.crypto.site_keys import SiteKeys
from common.enrolment import Invitation
from server.cli import app, main
from server.enrolment import enrol, renew
from server.home import ServerHome
from tests.server.coordinator import PASSPHRASE, URL, founded, registry, shown


@pytest.fixture
def passphrase(tmp_path: Path) -> Path:
    path = tmp_path / "passphrase"
    path.write_bytes(PASSPHRASE + b"\n")
    path.chmod(0o600)
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ServerHome:
    made = founded(tmp_path / "coordinator", time.time())
    monkeypatch.setenv("WARDROUND_SERVER", str(made.folder))
    monkeypatch.chdir(tmp_path)
    return made


@pytest.fixture
def keys(tmp_path: Path) -> SiteKeys:
    return SiteKeys.ensure(tmp_path / "north")


def ask(home: ServerHome, file: Path, keys: SiteKeys) -> dict[str, Any]:
    """The site sends its request."""
    return enrol(home, keys.request(Invitation.read(file.read_text(), str(file))).model_dump_json().encode())


def listing(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["sites", "--json"]) == 0
    return dict(json.loads(capsys.readouterr().out))


def test_the_first_ten_minutes(tmp_path: Path, passphrase: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file = tmp_path / "srv", tmp_path / "north.json"
    place = ["--home", str(folder)]
    secret = ["--passphrase-file", str(passphrase)]
    assert main(["init", str(folder), "--url", URL, *secret]) == 0
    assert "Move ca.key" in capsys.readouterr().err
    assert main(["invite", "north", *place, "--out", str(file)]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ask(ServerHome(folder), file, SiteKeys.ensure(tmp_path / "north"))["status"] == "waiting"

    capsys.readouterr()
    assert main(["sites", *place, "--json"]) == 0
    (site,) = json.loads(capsys.readouterr().out)["sites"]
    assert (site["name"], site["status"], site["not_after"]) == ("north", "requested", None)
    assert main(["sites", *place]) == 0
    assert site["code"] in capsys.readouterr().out

    assert main(["sites", "approve", "north", *place, "--code", site["code"], *secret]) == 0
    assert "`wardround-server up` lets north in" in capsys.readouterr().err
    assert ask(ServerHome(folder), file, SiteKeys.ensure(tmp_path / "north"))["status"] == "approved"
    assert main(["sites", "approve", "north", *place]) == 0, "again: nothing is asked"
    assert main(["sites", *place, "revoke", "north"]) == 0
    assert registry(ServerHome(folder)).by_name("north").status == "revoked"


def test_init_again_says_so_and_another_url_is_refused(home: ServerHome, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(home.folder), "--url", URL]) == 0
    assert "nothing was missing" in capsys.readouterr().err
    assert main(["init", str(home.folder), "--url", "https://other:1"]) == 2
    assert "change it there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("content", "mode", "problem"), [(b"short", 0o600, "at least 12"), (b"", 0o600, "at least 12"), (PASSPHRASE, 0o644, "chmod 600")]
)
def test_a_passphrase_file_that_protects_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, mode: int, problem: str
) -> None:
    file = tmp_path / "passphrase"
    file.write_bytes(content)
    file.chmod(mode)
    assert main(["init", str(tmp_path / "srv"), "--url", URL, "--passphrase-file", str(file)]) in (2, 6)
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "srv" / "ca.key").exists()


def test_the_passphrase_is_asked_for_twice_and_never_shown(tmp_path: Path) -> None:
    words = PASSPHRASE.decode()
    result = CliRunner().invoke(app, ["init", str(tmp_path / "srv"), "--url", URL], input=f"{words}\n{words}\n")
    assert result.exit_code == 0, result.output
    assert result.output.count("passphrase") >= 2
    assert words not in result.output
    differing = CliRunner().invoke(app, ["init", str(tmp_path / "other"), "--url", URL], input=f"{words}\nsomething else 123\n")
    assert differing.exit_code != 0
    assert not (tmp_path / "other" / "ca.key").exists()


def test_an_invitation_is_not_written_over_another_file(home: ServerHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["invite", "north"]) == 0
    first = (tmp_path / "north-invitation.json").read_bytes()
    assert main(["invite", "north"]) == 2
    assert "--out" in capsys.readouterr().err
    assert (tmp_path / "north-invitation.json").read_bytes() == first
    assert len(listing(capsys)["invitations"]) == 1, "and the first one stays good"
    assert main(["invite", "south", "--out", str(tmp_path / "none" / "x.json")]) == 2
    assert main(["invite", "a/b", "--out", str(tmp_path / "x.json")]) == 2
    assert main(["invite", "west", "--out", str(tmp_path / "x.json"), "--valid-hours", "0"]) == 2


def test_wrong_words_approve_nothing(
    home: ServerHome, tmp_path: Path, passphrase: Path, keys: SiteKeys, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["invite", "north"]) == 0
    ask(home, tmp_path / "north-invitation.json", keys)
    secret = ["--passphrase-file", str(passphrase)]
    other = "legal winner thank year wave sausage worth useful legal winner thank yellow"
    for words, status in ((other, 3), ("legal winner", 2), ("x " * 12, 2), ("", 2)):
        assert main(["sites", "approve", "north", "--code", words, *secret]) == status
    assert listing(capsys)["sites"][0]["status"] == "requested"
    code = listing(capsys)["sites"][0]["code"]
    result = CliRunner().invoke(app, ["sites", "approve", "north", *secret], input=f"{code.upper()}\n")
    assert result.exit_code == 0, result.output
    assert listing(capsys)["sites"][0]["status"] == "approved"


def test_the_wrong_passphrase_approves_nothing(
    home: ServerHome, tmp_path: Path, passphrase: Path, keys: SiteKeys, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["invite", "north"]) == 0
    ask(home, tmp_path / "north-invitation.json", keys)
    passphrase.write_bytes(b"another passphrase")
    code = listing(capsys)["sites"][0]["code"]
    assert main(["sites", "approve", "north", "--code", code, "--passphrase-file", str(passphrase)]) == 2
    assert "wrong passphrase" in capsys.readouterr().err
    assert listing(capsys)["sites"][0]["status"] == "requested"


def test_the_authoritys_key_from_a_stick(
    home: ServerHome, tmp_path: Path, passphrase: Path, keys: SiteKeys, capsys: pytest.CaptureFixture[str]
) -> None:
    stick = tmp_path / "stick.key"
    home.ca_key.rename(stick)
    assert main(["invite", "north"]) == 0
    ask(home, tmp_path / "north-invitation.json", keys)
    code = listing(capsys)["sites"][0]["code"]
    common = ["sites", "approve", "north", "--code", code, "--passphrase-file", str(passphrase)]
    assert main(common) == 2
    assert "--ca-key" in capsys.readouterr().err
    assert main([*common, "--ca-key", str(stick)]) == 0


def test_renewals(home: ServerHome, tmp_path: Path, passphrase: Path, keys: SiteKeys, capsys: pytest.CaptureFixture[str]) -> None:
    secret = ["--passphrase-file", str(passphrase)]
    assert main(["invite", "north"]) == 0
    ask(home, tmp_path / "north-invitation.json", keys)
    assert main(["sites", "approve", "north", "--code", listing(capsys)["sites"][0]["code"], *secret]) == 0
    assert main(["sites", "renew", "--all"]) == 0, "nothing waits, so nothing is asked"
    assert main(["sites", "renew"]) == 2
    assert main(["sites", "renew", "north", "--all"]) == 2
    assert main(["sites", "renew", "west", *secret]) == 2

    old = registry(home).by_name("north")
    renew(home, old, json.dumps({"certificate_request": keys.certificate_request("north")}).encode())
    assert listing(capsys)["sites"][0]["renewal_waiting"]
    assert main(["sites", "renew", "--all", *secret]) == 0
    assert not listing(capsys)["sites"][0]["renewal_waiting"]
    assert shown(registry(home).by_name("north")) != shown(old)


def test_the_table_shows_each_state(home: ServerHome, tmp_path: Path, keys: SiteKeys, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sites"]) == 0
    assert "no sites yet" in capsys.readouterr().out
    assert main(["invite", "south"]) == main(["invite", "north"]) == 0
    ask(home, tmp_path / "north-invitation.json", keys)
    assert main(["sites"]) == 0
    text = capsys.readouterr().out
    assert "invited (until" in text
    assert "requested" in text
    assert "north waits" in text


def test_a_folder_that_is_no_coordinators(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["sites"], ["invite", "a"], ["sites", "approve", "a"], ["sites", "revoke", "a"], ["sites", "renew", "--all"]):
        assert main([*command, "--home", str(tmp_path)]) == 2
        assert "wardround-server init" in capsys.readouterr().err
