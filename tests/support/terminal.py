# SPDX-License-Identifier: Apache-2.0
"""A command in a real terminal, with somebody who types: questions are answered as a person would, passwords and Ctrl-C included."""

import os
import pty
import re
import select
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from simulations.processes import MODULES, environment

Dialogue = Sequence[tuple[str, str]]
CTRL_C = "\x03"
_OWN_TERMINAL = "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
"""Makes standard input the terminal of the new session, so that Ctrl-C is a signal and a passphrase is asked for on it."""


def real_command(line: str) -> list[str]:
    """The words of a command line, started with this Python."""
    program, *words = shlex.split(line)
    return [sys.executable, "-m", MODULES[program], *words]


def type_into(line: str, dialogue: Dialogue = (), seconds: float = 120.0, expect: int = 0) -> str:
    """Run a command line in a terminal; `dialogue` says what is typed when a pattern appears, in order. What the screen showed."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-c", _OWN_TERMINAL, *real_command(line)]
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=environment({"COLUMNS": "200"})
    )
    os.close(theirs)
    try:
        screen = _talk(ours, process, list(dialogue), time.monotonic() + seconds)
    finally:
        if process.poll() is None:
            process.kill()
        os.close(ours)
    assert process.wait(10) == expect, f"{line}: exit code {process.returncode}\n{screen}"
    return screen


def _talk(terminal: int, process: "subprocess.Popen[bytes]", left: list[tuple[str, str]], deadline: float) -> str:
    screen, seen = "", 0
    while True:
        ready, _, _ = select.select([terminal], [], [], 0.1)
        part = _read(terminal) if ready else ""
        screen += part
        if left and (found := re.search(left[0][0], screen[seen:])):
            seen += found.end()
            typed = left.pop(0)[1]
            os.write(terminal, (typed if typed == CTRL_C else typed + "\n").encode())
        elif not part and (ready or process.poll() is not None):
            assert not left, f"never asked for {left[0][0]!r}\n{screen}"
            process.wait(10)
            return screen
        assert time.monotonic() < deadline, f"still running\n{screen}"


def _read(terminal: int) -> str:
    try:
        return os.read(terminal, 65536).decode(errors="replace")
    except OSError:  # how Linux says that the other end has closed
        return ""
