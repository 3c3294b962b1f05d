# SPDX-License-Identifier: Apache-2.0
"""ServerApps as processes: known by the lock that they hold, found by the next executor, none left behind, logs pruned."""

import os
import signal
from pathlib import Path

from common.flower_compat.tasks import ServerTask
from server.home import ServerHome
from server.run_processes import all_at_work, is_at_work, lock_folder, log_of, prune_logs
from server.serverapps import ServerApps
from tests.server.gateway.coordinator import Coordinator
from tests.support.commands import wait_until


def test_a_serverapp_is_known_by_its_lock_whoever_started_it(tmp_path: Path) -> None:
    """There is no SuperLink: the ServerApps wait for one, like those of a coordinator that is just coming back."""
    home = Coordinator.make(tmp_path).home
    home.logs.mkdir()
    first = ServerApps(home, "0" * 64)
    for number in (2**63 + 1, 2):
        first.launch(ServerTask(number, number, f"token {number}"))
    assert all_at_work(home) and not is_at_work(home, 3)
    os.kill(pid(home, 2), signal.SIGKILL)
    wait_until(lambda: not is_at_work(home, 2), 30)
    assert first.how_it_ended(2) == "its server was killed by signal 9"
    again = pid(home, 2**63 + 1)
    first.launch(ServerTask(2**63 + 1, 2**63 + 1, "a new token, the task took too long to start"))
    assert pid(home, 2**63 + 1) != again

    successor = ServerApps(home, "0" * 64)
    assert all_at_work(home) == [2**63 + 1], "found at work"
    assert (home.folder / "tokens" / str(2**63 + 1)).exists() or log_of(home, 2**63 + 1).stat().st_size, "its token is left to it"
    successor.stop_all()
    assert all_at_work(home) == []
    assert successor.how_it_ended(2**63 + 1) == "its server ended"
    assert first.reap()


def pid(home: ServerHome, flower_run_id: int) -> int:
    return int((lock_folder(home) / str(flower_run_id)).read_text())


def test_the_newest_logs_are_kept_and_those_in_use(tmp_path: Path) -> None:
    home = ServerHome(tmp_path)
    home.logs.mkdir()
    for number in range(6):
        log_of(home, number).write_text("x")
        os.utime(log_of(home, number), (number, number))
    (home.logs / "up.log").write_text("another log")
    assert sorted(prune_logs(home, in_use=[1], kept=3)) == [log_of(home, 0), log_of(home, 2)]
    assert {path.name for path in home.logs.iterdir()} == {"run-1.log", "run-3.log", "run-4.log", "run-5.log", "up.log"}
    assert prune_logs(home) == []
