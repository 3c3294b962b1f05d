# SPDX-License-Identifier: Apache-2.0
"""The ServerApps of a coordinator as processes: started with their token, watched, found again, stopped.

Each holds a lock on `serverapps/<Flower's run id>` from before it runs until it is gone, whatever becomes of the executor that started
it: so the next executor knows whether a run's server still works, and nobody has to guess from a process id or a heartbeat.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from common.flower_compat.large_objects import objects_folder
from common.flower_compat.superlink import address
from common.flower_compat.tasks import ServerTask, TaskSource
from server import leashed
from server.home import HOME_VARIABLE, ServerHome
from server.run_processes import all_at_work, is_at_work, lock_folder, log_of, prune_logs

SPEAK_SECONDS = 10.0
LONGEST_START_SECONDS = 600.0
STOP_SECONDS = 8.0
STOP_POLL_SECONDS = 0.1
LAST_BREATH_SECONDS = 2.0
"""Between a process's letting go of its lock and its end."""
SERVER_APP = "server.app"
LOG = logging.getLogger("wardround.executor")


@dataclass(frozen=True)
class Starting:
    """A server that has not taken its token yet; times in monotonic seconds."""

    task: ServerTask
    since: float
    spoken: float


class ServerApps:
    """All ServerApps of the coordinator in `home`; those that an executor before this one has started are among them."""

    def __init__(self, home: ServerHome, bundle_sha256: str) -> None:
        self._home, self._bundle_sha256 = home, bundle_sha256
        self._tokens, self._locks = home.folder / "tokens", lock_folder(home)
        self._ours: dict[int, subprocess.Popen[bytes]] = {}
        self._starting: dict[int, Starting] = {}
        self._ended: dict[int, str] = {}
        for folder in (self._tokens, self._locks):
            folder.mkdir(mode=0o700, exist_ok=True)
        self._found = set(all_at_work(home))
        for run in self._found:
            LOG.info("Flower run %d: found its server at work", run, extra={"flower_run": run})
        for left in self._tokens.iterdir():
            if not is_at_work(self._home, int(left.name)):
                left.unlink()

    def launch(self, task: ServerTask) -> None:
        """Start the ServerApp of a task. The token reaches it in a file that it removes.

        A task that comes a second time took too long to start: its first token is void, and who holds that is ended.
        """
        run = task.flower_run_id
        if is_at_work(self._home, run):
            self._end(run)
        token_file = _write_token(self._tokens / str(run), task.token)
        arguments = ["--address", address(self._home), "--root-certificates", str(self._home.ca_certificate)]
        arguments += ["--token-file", str(token_file), "--bundle-sha256", self._bundle_sha256, "--app", SERVER_APP]
        arguments += ["--objects", str(objects_folder(self._home.superlink_database))]
        with self._lock_file(run).open("w", encoding="ascii") as lock, _append(log_of(self._home, run)) as log:
            fcntl.flock(lock, fcntl.LOCK_EX)  # held by whoever has the file open: us for now, then the process
            process = subprocess.Popen(
                leashed.command("common.flower_compat.serverapp", arguments),
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, HOME_VARIABLE: str(self._home.folder)},
                cwd=self._home.folder,
                pass_fds=(lock.fileno(),),
            )
            lock.write(str(process.pid))
        self._ours[run] = process
        self._starting[run] = Starting(task, time.monotonic(), 0.0)
        self._ended.pop(run, None)
        LOG.info("Flower run %d: server started, process %d", run, process.pid, extra={"flower_run": run})
        prune_logs(self._home, all_at_work(self._home))

    def speak_for_those_that_start(self, source: TaskSource) -> None:
        """Keep the tasks whose servers are still loading, however slow the machine is; one that speaks for itself has taken its token."""
        now = time.monotonic()
        for run, starting in list(self._starting.items()):
            if not (self._tokens / str(run)).exists() or run not in self._ours or now - starting.since > LONGEST_START_SECONDS:
                del self._starting[run]
            elif now - starting.spoken >= SPEAK_SECONDS:
                self._starting[run] = replace(starting, spoken=now)
                source.keep(starting.task)

    def how_it_ended(self, flower_run_id: int) -> str | None:
        """How this Flower run's process ended, in words; None when that was not seen. For one that is not at work any more."""
        if flower_run_id in self._ours:
            with suppress(subprocess.TimeoutExpired):
                self._ours[flower_run_id].wait(LAST_BREATH_SECONDS)
        self.reap()
        return self._ended.get(flower_run_id)

    def reap(self) -> bool:
        """Note who has ended; whether there was anybody."""
        ended = [run for run, process in self._ours.items() if process.poll() is not None]
        for run in ended:
            process = self._ours.pop(run)
            self._ended[run] = _in_words(process.returncode)
            LOG.info("Flower run %d: %s, process %d", run, self._ended[run], process.pid, extra={"flower_run": run})
            (self._tokens / str(run)).unlink(missing_ok=True)
        gone = self._found - set(all_at_work(self._home))
        self._found -= gone
        self._ended |= dict.fromkeys(gone, "its server ended")
        for path in self._locks.iterdir():
            if not is_at_work(self._home, int(path.name)):
                path.unlink(missing_ok=True)
        return bool(ended or gone)

    def stop_all(self) -> None:
        """Each still tells the SuperLink that it was stopped; one that does not end in time is killed."""
        for run in all_at_work(self._home):
            self._signal(run, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while all_at_work(self._home) and time.monotonic() < deadline:
            self.reap()
            time.sleep(STOP_POLL_SECONDS)
        for run in all_at_work(self._home):
            self._end(run)
        self.reap()

    def _end(self, flower_run_id: int) -> None:
        """Kill it and see it gone."""
        process = self._ours.pop(flower_run_id, None)
        if process is None:
            self._signal(flower_run_id, signal.SIGKILL)
        else:
            process.kill()
            process.wait()
        deadline = time.monotonic() + STOP_SECONDS
        while is_at_work(self._home, flower_run_id) and time.monotonic() < deadline:
            time.sleep(STOP_POLL_SECONDS)

    def _signal(self, flower_run_id: int, number: signal.Signals) -> None:
        with suppress(OSError, ValueError):
            os.kill(int(self._lock_file(flower_run_id).read_text(encoding="ascii")), number)

    def _lock_file(self, flower_run_id: int) -> Path:
        return self._locks / str(flower_run_id)


def _in_words(code: int) -> str:
    return f"its server ended with code {code}" if code >= 0 else f"its server was killed by signal {-code}"


def _write_token(path: Path, token: str) -> Path:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(token)
    return path


def _append(path: Path) -> IO[bytes]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")
