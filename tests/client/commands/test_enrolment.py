# SPDX-License-Identifier: Apache-2.0
"""`wardround-client init` where no coordinator answers; with one: tests/e2e/test_enrolment.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from client import cli
from client.site_home import SiteHome
from common.crypto.certificates import Authority
from common.errors import ExitCode
from tests.client.enrolled import NOW, invitation_to, new_authority
from tests.support.tls_server import serving, write_server_certificate


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost")


@pytest.fixture(scope="module")
def authority() -> Authority:
    return new_authority()


def test_without_the_coordinator_everything_is_made_and_the_next_time_goes_on(
    tmp_path: Path, authority: Authority, capsys: pytest.CaptureFixture[str]
) -> None:
    write_server_certificate(tmp_path / "server", authority)
    file, home = tmp_path / "invitation.json", SiteHome(tmp_path / "north")
    with serving(tmp_path / "server", lambda *asked: (200, {"status": "waiting"})) as server:
        url = server.url
    file.write_text(invitation_to(authority, url).model_dump_json())
    assert cli.main(["init", "--invitation", str(file), "--home", str(home.folder)]) == ExitCode.FEDERATION
    assert f"{url}: cannot be reached (Connection refused)" in capsys.readouterr().err
    keys = [path.read_bytes() for path in (home.key, home.node_key, home.tls_key)]
    with serving(tmp_path / "server", lambda *asked: (200, {"status": "waiting"})) as server:
        home.config.write_text(home.config.read_text().replace(url, server.url))
        assert cli.main(["init", "--home", str(home.folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["status"], facts["site"], len(facts["words"].split())) == ("waiting", "north", 12)
    assert [path.read_bytes() for path in (home.key, home.node_key, home.tls_key)] == keys


def test_an_invitation_is_needed_the_first_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["init", "--home", str(tmp_path / "north")]) == ExitCode.BAD_INPUT
    assert "run `wardround-client init --invitation FILE --home" in capsys.readouterr().err
    assert not (tmp_path / "north").exists()


def test_an_invitation_that_has_ended(tmp_path: Path, authority: Authority, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "invitation.json"
    file.write_text(invitation_to(authority, "https://localhost:1", expires=NOW - 1).model_dump_json())
    assert cli.main(["init", "--invitation", str(file), "--home", str(tmp_path / "north")]) == ExitCode.BAD_INPUT
    assert "ask the coordinator for a new one" in capsys.readouterr().err


def test_the_command_line_does_not_load_torch_or_the_network() -> None:
    code = "import sys, client.cli; print([name for name in ('torch', 'flwr', 'httpx', 'numpy', 'cryptography') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
