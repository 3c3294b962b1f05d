# SPDX-License-Identifier: Apache-2.0
"""`wardround-client egress`, as hospital IT types it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from client import cli
from client.egress import Incoming, release
from client.site_home import SiteHome
from common.protocol import RefusalCode
from tests.client.egress_site import acknowledge, lines_of, make_home, refusal, send


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SiteHome:
    monkeypatch.setenv("COLUMNS", "200")
    home = make_home(tmp_path / "home")
    statements = send(home, 1, 2, 2)
    release(home, Incoming.unread(), refusal(RefusalCode.PAUSED), now=1e9)
    acknowledge(home, statements[:2])
    return home


def egress(home: SiteHome, *options: str) -> int:
    return cli.main(["egress", "--home", str(home.folder), *options])


def cut(home: SiteHome, lines: int) -> None:
    home.egress.write_bytes(b"".join(home.egress.read_bytes().splitlines(keepends=True)[:lines]))


def test_the_table(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    assert egress(home) == 0
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines() if line.split()[:1] and line.split()[0] in "1234"]
    assert [(row[0], row[5], row[6]) for row in rows[:3]] == [("1", "1", "update"), ("2", "2", "update"), ("3", "2", "update")]
    assert rows[0][-2:] == ["has", "it"] and "again (2)" in text and "refusal PAUSED" in text
    assert "4 lines, head" in text and "chain and receipts" in text
    assert egress(home, "--last", "1") == 0
    assert "update" not in capsys.readouterr().out


def test_verify_says_what_it_saw_and_what_it_could_not_see(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    assert egress(home, "--verify") == 0
    text = capsys.readouterr().out
    assert "Checked: chain and receipts." in text
    assert "Seen: the chain. 4 lines" in text and "has the reply of line 2" in text
    assert "Not seen: whether lines after 4 were cut off" in text
    home.egress_receipts.unlink()
    assert egress(home, "--verify") == 0
    text = capsys.readouterr().out
    assert "Checked: chain alone." in text and "There is no receipt" in text


def test_json_is_one_object(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    assert egress(home, "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["checked"], facts["whole"], facts["number"], facts["covered"], facts["receipts"]) == ("chain and receipts", True, 4, 2, 2)
    assert [(line["number"], line["acknowledged"], line["again"]) for line in facts["lines"]] == [
        (1, True, None),
        (2, True, None),
        (3, False, 2),
        (4, False, None),
    ]
    assert facts["head"] == lines_of(home)[-1].hash
    assert facts["lines"][0]["fields"][0] == ["metrics/num-examples", "int", [], 8]


def test_a_cut_log_ends_with_6_until_it_is_explained(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    cut(home, 1)
    for options in ((), ("--verify",), ("--json",)):
        assert egress(home, *options) == 6
        captured = capsys.readouterr()
        assert "1 lines that the coordinator has acknowledged are not here" in captured.err
        if "--json" in options:
            assert json.loads(captured.out)["whole"] is False
    assert egress(home, "--explain", "") == 2
    assert egress(home, "--explain", "restored from the backup of 3 May", "--verify") == 0
    text = capsys.readouterr().out
    assert "explains 1 lines: restored from the backup of 3 May" in text and "hospital IT has said why" in text
    assert egress(home, "--explain", "again") == 2
    assert "nothing to explain" in capsys.readouterr().err


def test_an_edited_log_ends_with_6_and_cannot_be_explained_away(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    home.egress.write_bytes(home.egress.read_bytes().replace(b'"round":1', b'"round":9', 1))
    assert egress(home, "--verify") == 6
    captured = capsys.readouterr()
    assert "line 1 was edited" in captured.err
    assert egress(home, "--explain", "it was me") == 2


def test_another_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["egress", "--home", str(tmp_path)]) == 2
    assert "not a site's folder" in capsys.readouterr().err


def test_the_explanation_is_shown_as_it_was_typed(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    """Square brackets are no markup, and nothing steers the terminal."""
    cut(home, 1)
    assert egress(home, "--explain", "[bold]see ticket[/bold] \x1b[31m") == 0
    text = capsys.readouterr().out
    assert "[bold]see ticket[/bold]" in text and "\x1b[31m" not in text
