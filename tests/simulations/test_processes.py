# SPDX-License-Identifier: Apache-2.0
"""A process on a leash stops as soon as whoever holds it lets go, also by being killed."""

import signal
import subprocess
import sys
from pathlib import Path

import psutil

from server import leashed
from simulations.processes import Background, Leash, wait_until

SERVER = ["0", "--bind", "127.0.0.1"]
HOLDER = """\
import sys
from pathlib import Path
from server import leashed
from simulations.processes import Background, Leash
leash = Leash()
print(Background(leashed.command("http.server", ["0", "--bind", "127.0.0.1"]), Path(sys.argv[1]), leash=leash).pid, flush=True)
sys.stdin.read()
"""


def serving(path: Path) -> bool:
    return "Serving" in path.read_text(encoding="utf-8")


def test_it_stops_when_it_is_let_go(tmp_path: Path) -> None:
    leash, log = Leash(), tmp_path / "log"
    one = Background(leashed.command("http.server", SERVER), log, leash=leash)
    wait_until(lambda: serving(log), "it runs", 30, one)
    leash.let_go()
    leash.let_go()
    assert one.finished(20) == -signal.SIGTERM


def test_it_stops_when_its_holder_is_killed(tmp_path: Path) -> None:
    log = tmp_path / "log"
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(log)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None and holder.stdout is not None
    with holder.stdin, holder.stdout:
        held = psutil.Process(int(holder.stdout.readline()))
        wait_until(lambda: serving(log), "it runs", 30)
        holder.kill()
        holder.wait(10)
    psutil.wait_procs([held], 20)
    assert not held.is_running()
