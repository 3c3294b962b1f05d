# SPDX-License-Identifier: Apache-2.0
"""What is read from the driver's tool; there is no card here, so the tool is a script that says what one said."""

from pathlib import Path

import pytest

from client.gpu import CardMemory, card_memory


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def tool(folder: Path, script: str) -> None:
    path = folder / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_no_tool_no_cards(tools: Path) -> None:
    assert card_memory() == []


def test_two_cards_and_one_that_does_not_say(tools: Path) -> None:
    tool(tools, 'test "$1" = --query-gpu=index,memory.used,memory.total || exit 1\nprintf "0, 1024, 81920\\n1, [N/A], [N/A]\\n2, 0, 16\\n"')
    assert card_memory() == [CardMemory(0, 1 << 30, 80 << 30), CardMemory(2, 0, 16 << 20)]


@pytest.mark.parametrize("script", ["exit 9", "echo NVIDIA-SMI has failed because it could not talk to the driver"])
def test_a_tool_that_fails_is_no_card(tools: Path, script: str) -> None:
    tool(tools, script)
    assert card_memory() == []


def test_a_tool_that_hangs_is_given_up(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.gpu.TIMEOUT_SECONDS", 0.2)
    tool(tools, "exec /bin/sleep 60")
    assert card_memory() == []
