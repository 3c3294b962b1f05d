# SPDX-License-Identifier: Apache-2.0
"""The training process, seen from outside: it never outlives the process that started it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

OWNER = """
import sys, time
from client.worker import Worker, WorkerSettings
worker = Worker(WorkerSettings("busy:app", {}))
worker.start()
print(worker.process_id, flush=True)
time.sleep(600)
"""
BUSY = """
import os, pathlib, time
pathlib.Path(os.environ["BEGUN"]).touch()
time.sleep(600)
"""


def test_it_ends_in_the_middle_of_its_work_when_its_owner_is_killed(tmp_path: Path) -> None:
    (tmp_path / "busy.py").write_text(BUSY)
    begun = tmp_path / "begun"
    search = os.pathsep.join([str(tmp_path), *(path for path in sys.path if path)])
    environment = {**os.environ, "PYTHONPATH": search, "BEGUN": str(begun)}
    with subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True, env=environment) as owner:
        assert owner.stdout is not None
        worker = psutil.Process(int(owner.stdout.readline()))
        while not begun.exists():
            assert worker.is_running()
        owner.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs([worker], 10)
    assert not alive or worker.status() == psutil.STATUS_ZOMBIE
