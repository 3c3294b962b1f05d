# SPDX-License-Identifier: Apache-2.0
"""status, pause and resume; `start` is tried with real daemons in tests/client/test_daemon.py."""

import json
from pathlib import Path

import pytest

from client.cli import main
from client.site_home import SiteHome
from client.status import Stage, StatusBoard, only_daemon
from tests.client.enrolled import certified, new_authority, prepared


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    authority = new_authority()
    return certified(prepared(tmp_path, authority, "https://coordinator.example:8443"), authority, days=90)


def status(home: SiteHome, capsys: pytest.CaptureFixture[str], *options: str) -> str:
    assert main(["status", "--home", str(home.folder), *options]) == 0
    return capsys.readouterr().out


def test_before_the_first_start(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    facts = json.loads(status(home, capsys, "--json"))
    assert (facts["site"], facts["running"], facts["stage"], facts["crashed"]) == ("north", False, "stopped", False)
    assert 89 < facts["certificate_days"] <= 90 and facts["studies_to_decide"] == 0


def test_in_a_round(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    with only_daemon(home):
        board = StatusBoard(home, "1")
        board.take(b"header")
        board.about("a" * 64, "b" * 32, 3)
        board.fail("the line was cut")
        facts = json.loads(status(home, capsys, "--json"))
        text = status(home, capsys)
    assert (facts["running"], facts["stage"], facts["round"], facts["study"]) == (True, "working", 3, "a" * 64)
    assert "round 3 of study aaaaaaaaaaaa, run bbbbbbbbbbbb" in text and "the line was cut" in text


def test_after_a_crash(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    StatusBoard(home, "1").reach(Stage.IDLE)
    facts = json.loads(status(home, capsys, "--json"))
    assert facts["crashed"] and facts["stage"] == "stopped" and facts["pid"] is None
    assert "ended without stopping" in status(home, capsys)


def test_pause_and_resume(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--home", str(home.folder)]
    assert main(["pause", *options]) == 0 and home.paused.exists()
    assert main(["pause", *options]) == 0
    assert "paused already" in capsys.readouterr().out
    assert json.loads(status(home, capsys, "--json"))["paused"]
    assert "paused" in status(home, capsys)
    assert main(["resume", *options]) == 0 and not home.paused.exists()
    assert main(["resume", *options]) == 0
    assert "it is not paused" in capsys.readouterr().out


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("start", "status", "pause", "resume"):
        assert main([command, "--home", str(tmp_path)]) == 2
        assert "not a site's folder" in capsys.readouterr().err


def test_a_policy_with_a_mistake_is_said_before_anything_starts(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    home.config.write_text(home.config.read_text() + "threds: 4\n")
    assert main(["start", "--home", str(home.folder)]) == 2
    assert "threds" in capsys.readouterr().err and not home.daemon.exists()
