# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C in `wardround-sim federation`, once or by somebody impatient: it says so, and no process of coordinator or hospitals is left.

Nor is one after `kill -9`, though nobody can say anything then.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from common.errors import ExitCode
from simulations.processes import environment, wait_until

PATIENCE_SECONDS = 0.2
START_SECONDS = 400.0
SEVERAL = 5
LEASH_SECONDS = 60.0


@dataclass(frozen=True)
class Demonstration:
    """The command in a process group of its own, as a shell starts it; what it says goes to a file."""

    folder: Path
    said: Path
    process: "subprocess.Popen[bytes]"

    def family(self) -> list[psutil.Process]:
        """Every process that it has started, and theirs."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def ctrl_c(self) -> None:
        """What a terminal does: the whole foreground group hears it."""
        os.killpg(self.process.pid, signal.SIGINT)

    def wait_for(self, text: str) -> None:
        """Wait until it has said so."""
        wait_until(lambda: self.process.poll() is not None or text in self.said.read_text(encoding="utf-8"), text, START_SECONDS)
        assert self.process.poll() is None, self.said.read_text(encoding="utf-8")


@pytest.fixture
def demonstration(tmp_path: Path) -> Iterator[Demonstration]:
    said, folder = tmp_path / "said", tmp_path / "demo"
    command = [sys.executable, "-m", "simulations.cli", "federation", "--rounds", "200", "--out", str(folder)]
    with said.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, env=environment())
    yield Demonstration(folder, said, process)
    for one in [*left_of(folder), *([] if process.poll() is not None else [psutil.Process(process.pid)])]:
        one.kill()
    process.wait(10)


def left_of(folder: Path) -> list[psutil.Process]:
    """Processes whose command line names the folder of the demonstration."""
    every = psutil.process_iter(["cmdline"])
    return [one for one in every if any(str(folder) in word for word in one.info["cmdline"] or ())]


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "times"), [("enrolled", 1), ("round_done", 1), ("round_done", 3)])
def test_ctrl_c_leaves_no_process(demonstration: Demonstration, moment: str, times: int) -> None:
    demonstration.wait_for("training:" if moment == "round_done" else moment)
    if moment == "round_done":
        events = demonstration.folder / "coordinator" / "runs"
        wait_until(
            lambda: any('"round_done"' in path.read_text() for path in events.glob("*/events.jsonl")), "a round is done", START_SECONDS
        )
        assert len(demonstration.family()) >= SEVERAL
    family = demonstration.family()
    demonstration.ctrl_c()
    for _ in range(times - 1):  # while it stops the others, one after the other
        demonstration.wait_for("stopping:")
        demonstration.ctrl_c()
        time.sleep(PATIENCE_SECONDS)
    code = demonstration.process.wait(90)
    _, alive = psutil.wait_procs(family, 5)
    assert not [one.cmdline() for one in alive]
    assert not [one.cmdline() for one in left_of(demonstration.folder)]
    said = demonstration.said.read_text(encoding="utf-8")
    assert code == ExitCode.INTERRUPTED and "every process is stopped" in said, said


@pytest.mark.slow
def test_kill_9_leaves_no_process(demonstration: Demonstration) -> None:
    """What was killed could stop nobody; whoever hung on it stops by itself."""
    demonstration.wait_for("training:")
    wait_until(lambda: len(demonstration.family()) >= SEVERAL, "the run has begun", START_SECONDS)
    family = demonstration.family()
    os.kill(demonstration.process.pid, signal.SIGKILL)
    demonstration.process.wait(10)
    _, alive = psutil.wait_procs(family, LEASH_SECONDS)
    assert not [one.cmdline() for one in alive]
    wait_until(lambda: not left_of(demonstration.folder), "nobody is left", LEASH_SECONDS)
