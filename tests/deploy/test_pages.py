# SPDX-License-Identifier: Apache-2.0
"""docs/operations.md: every command in it exists, every file and page it names is there, and it says what the units say."""

import re
from pathlib import Path

import pytest

from common.environment import MEMORY
from tests.deploy.command_lines import problem
from tests.deploy.units import CLIENT_UNIT, DEPLOY, SERVER_UNIT, Unit

ROOT = DEPLOY.parent
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
SHORT = {"coordinator": "wardround-server", "hospital": "wardround-client"}


def shell_lines() -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def ours() -> tuple[list[str], list[str]]:
    """Command lines of ours: typed through the two short names, and mentioned in a sentence, where arguments may be left out."""
    typed = [line for line in shell_lines() if line.split()[0] in SHORT]
    said = [text for text in re.findall(r"`(wardround-(?:server|client) [^`]+)`", PAGE) if "DIR" not in text]
    return [f"{SHORT[line.split()[0]]} {line.split(' ', 1)[1]}" for line in typed], said


def test_every_command_of_the_page_exists() -> None:
    typed, said = ours()
    assert len(typed) > 12 and len(said) > 8
    assert [found for line in typed if (found := problem(line))] == []
    assert [found for line in said if (found := problem(line)) and "Missing argument" not in found] == []


def test_a_command_that_does_not_exist_would_be_found() -> None:
    assert "No such command" in problem("wardround-client upgrade")
    assert "No such option" in problem("wardround-client status --hom /srv")
    assert "Missing argument" in problem("wardround-server resume")


@pytest.mark.parametrize("path", [SERVER_UNIT, CLIENT_UNIT], ids=["server", "client"])
def test_page_and_unit_speak_of_the_same_folders_and_user(path: Path) -> None:
    unit = Unit.read(path)
    name = path.stem
    assert unit.one("User") == unit.one("Group") == unit.one("StateDirectory") == unit.one("CacheDirectory") == name
    assert f"useradd --system --user-group --home-dir {unit.one('WorkingDirectory')} " in PAGE
    environment = dict(pair.split("=", 1) for pair in unit.one("Environment").split())
    assert f"--mode 0700 {unit.one('WorkingDirectory')} {environment['WARDROUND_CACHE']}" in PAGE
    assert MEMORY.items() <= environment.items(), "read when the process starts: too late for what it sets itself"
    assert f"sudo -u {name} " in PAGE and unit.one("ExecStart").split()[0] in PAGE


def test_every_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"\bdeploy/[\w.-]+\w", PAGE))
    assert {"deploy/wardround-server.service", "deploy/wardround-client-gpu.conf", "deploy/Dockerfile.client"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []
    links = set(re.findall(r"\]\(([\w.-]+)\)", PAGE))
    assert [link for link in links if not (ROOT / "docs" / link).exists()] == []
