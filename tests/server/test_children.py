# SPDX-License-Identifier: Apache-2.0
"""Children are restarted with a growing pause, share a group, and none outlives the one who started them."""

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from logging.handlers import RotatingFileHandler
from pathlib import Path

import pytest

from common.errors import InputError, RefusedError
from server.children import Child, ChildSpec, Group, members
from server.supervisor import LOCK_FILE, UP_FILE, UpFile, check_folder, check_ports, held
from tests.server.gateway.coordinator import Coordinator
from tests.support.commands import wait_until

LIVES = ChildSpec("lives", "http.server", ("0", "--bind", "127.0.0.1"))
DIES = ChildSpec("dies", "this", ())
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"])
time.sleep(60)
"""


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def group(tmp_path: Path) -> Iterator[Group]:
    made = Group(tmp_path, dict(os.environ))
    yield made
    with suppress(OSError):
        made.end()


def child(spec: ChildSpec, group: Group, folder: Path) -> tuple[Child, Lines]:
    log, lines = logging.Logger("test"), Lines()
    log.addHandler(lines)
    return Child(spec, group, log, RotatingFileHandler(folder / f"{spec.name}.log")), lines


def test_a_child_that_dies_is_started_again_each_time_later(tmp_path: Path, group: Group) -> None:
    dying, lines = child(DIES, group, tmp_path)
    starts, before = [], 0
    deadline = time.monotonic() + 30
    while len(starts) < 3 and time.monotonic() < deadline:
        dying.watch()
        if sum("started" in line for line in lines.lines) > before:
            before += 1
            starts.append(time.monotonic())
        time.sleep(0.01)
    dying.stop(5)
    assert [line.rsplit(" ", 2)[1] for line in lines.lines if "starts again" in line][:2] == ["0.5", "1.0"]
    assert starts[1] - starts[0] >= 0.5
    assert starts[2] - starts[1] >= 1.0
    assert dying.facts["restarts"] == 2
    assert "The Zen of Python" in (tmp_path / "dies.log").read_text(), "its output is kept"


def test_a_killed_child_comes_back_into_the_same_group(tmp_path: Path, group: Group) -> None:
    first, _ = child(LIVES, group, tmp_path)
    second, _ = child(ChildSpec("other", LIVES.module, LIVES.arguments), group, tmp_path)
    first.watch()
    second.watch()
    pids = [one.facts["pid"] for one in (first, second)]
    assert os.getpgid(pids[0]) == os.getpgid(pids[1]) != os.getpgid(0)
    os.kill(pids[0], signal.SIGKILL)
    wait_until(lambda: (first.watch(), first.is_alive and first.facts["pid"] != pids[0])[1], 20)
    assert os.getpgid(first.facts["pid"]) == os.getpgid(pids[1])
    for one in (first, second):
        one.stop(5)
    assert group.end() == []


def test_who_does_not_stop_is_killed_with_what_it_started(tmp_path: Path, group: Group) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    made = Group(tmp_path, {**os.environ, "PYTHONPATH": str(tmp_path)})
    stubborn, lines = child(ChildSpec("stubborn", "stubborn", ()), made, tmp_path)
    stubborn.watch()
    pid = stubborn.facts["pid"]
    wait_until(lambda: len(members(pid)) == 2, 20)
    time.sleep(0.3)
    stubborn.stop(0.2)
    assert any("killed" in line for line in lines.lines)
    assert len(made.end(0.5)) == 1
    assert members(pid) == []


def test_children_end_when_the_one_who_started_them_is_killed(tmp_path: Path) -> None:
    program = f"""
import os, sys, time
from pathlib import Path
from server.children import ChildSpec, Group
group = Group(Path({str(tmp_path)!r}), dict(os.environ))
print(group.start(ChildSpec("lives", "http.server", ("0", "--bind", "127.0.0.1"))).pid, flush=True)
time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    with parent.stdout:
        pid = int(parent.stdout.readline())
        time.sleep(0.5)
        assert members(pid) == [pid]
        parent.kill()
        parent.wait()
    wait_until(lambda: members(pid) == [], 15)


def test_one_up_at_a_time_and_no_stale_lock(tmp_path: Path) -> None:
    home = Coordinator.make(tmp_path).home
    (home.folder / LOCK_FILE).touch()
    UpFile(999_999_999, "ready", 0.0, "https://localhost", {}).write(home.folder / UP_FILE)
    assert UpFile.read(home) is None, "what a killed one left says nothing"
    with held(home):
        with pytest.raises(RefusedError, match="is running in this folder"), held(home, 0.2):
            pass
        found = UpFile.read(home)
        assert found is not None
        assert found.state == "ready"
    with held(home):
        pass


def test_ports_that_are_taken_are_named_together(tmp_path: Path) -> None:
    import socket

    home = Coordinator.make(tmp_path).home
    settings = home.settings
    check_ports(home)
    with socket.create_server(("127.0.0.1", settings.listen_port)), socket.create_server(("127.0.0.1", settings.superlink_port)):
        with pytest.raises(InputError) as caught:
            check_ports(home)
        assert [problem.split(":")[0] for problem in caught.value.problems] == ["superlink_port of server.json", "listen of server.json"]
    holder = socket.create_server(("127.0.0.1", settings.listen_port))
    (home.folder / UP_FILE).write_text("{}")
    timer = threading.Timer(0.5, holder.close)
    timer.start()
    check_ports(home)
    timer.join()


def test_a_folder_that_is_not_complete(tmp_path: Path) -> None:
    home = Coordinator.make(tmp_path).home
    check_folder(home)
    home.superexec_secret.unlink()
    home.certificate.unlink()
    with pytest.raises(InputError, match=r"server\.crt, superexec\.secret missing"):
        check_folder(home)


def test_up_file_is_one_json_object(tmp_path: Path) -> None:
    home = Coordinator.make(tmp_path).home
    UpFile(1, "ready", 2.0, "https://localhost", {"gateway": {"pid": 3, "restarts": 0, "since": 1.0}}).write(home.folder / UP_FILE)
    assert json.loads((home.folder / UP_FILE).read_text())["children"]["gateway"]["pid"] == 3
