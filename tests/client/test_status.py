# SPDX-License-Identifier: Apache-2.0
"""What the daemon says about itself, the lock that keeps it alone, and its log."""

import json
import os
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from client.daemon_log import DaemonLog
from client.site_home import SiteHome
from client.status import DaemonState, Stage, StatusBoard, is_running, lock_path, only_daemon
from common.errors import InputError, StorageError


@pytest.fixture
def home(tmp_path: Path) -> SiteHome:
    return SiteHome(tmp_path)


def read(home: SiteHome) -> DaemonState:
    state = DaemonState.read(home)
    assert state is not None
    return state


def test_everything_said_is_in_the_file_at_once(home: SiteHome) -> None:
    now = [100.0]
    board = StatusBoard(home, "1.2", lambda: now[0])
    assert (read(home).stage, read(home).pid, read(home).since) == (Stage.STARTING, os.getpid(), 100.0)
    now[0] = 200.0
    board.online(7)
    board.take(b"header")
    board.about("a" * 64, "b" * 32, 3)
    state = read(home)
    assert (state.stage, state.since, state.node_id, state.round, state.in_hand) == (Stage.WORKING, 200.0, 7, 3, b"header".hex())
    now[0] = 300.0
    board.finish(answered=True)
    state = read(home)
    assert (state.stage, state.since, state.in_hand, state.rounds_answered) == (Stage.IDLE, 300.0, None, 1)
    assert stat.S_IMODE(home.daemon.stat().st_mode) == 0o600


def test_the_same_stage_again_is_no_new_one(home: SiteHome) -> None:
    now = [100.0]
    board = StatusBoard(home, "1", lambda: now[0])
    board.reach(Stage.IDLE)
    now[0] = 200.0
    board.reach(Stage.IDLE)
    assert read(home).since == 100.0


def test_a_problem_is_news_once(home: SiteHome) -> None:
    board = StatusBoard(home, "1", lambda: 5.0)
    assert board.fail("no way", Stage.UNREACHABLE)
    assert not board.fail("no way", Stage.UNREACHABLE)
    assert board.fail("no way", Stage.UNREACHABLE, again=True)
    assert board.fail("another") and read(home).stage is Stage.UNREACHABLE
    assert (read(home).last_error, read(home).last_error_at) == ("another", 5.0)


def test_what_a_daemon_that_died_leaves_behind(home: SiteHome) -> None:
    board = StatusBoard(home, "1")
    board.online(7)
    board.take(b"header")
    after = StatusBoard(home, "1")
    assert after.leftover is not None and (after.state.node_id, after.state.in_hand) == (7, b"header".hex())


def test_a_daemon_that_stopped_in_order_leaves_nothing(home: SiteHome) -> None:
    board = StatusBoard(home, "1")
    board.online(7)
    board.reach(Stage.STOPPED)
    after = StatusBoard(home, "1")
    assert after.leftover is None and after.state.node_id is None


def test_the_state_of_another_machine_is_not_taken_over(home: SiteHome) -> None:
    """A copy of the folder must not go on as the node of the machine that it was copied from."""
    board = StatusBoard(home, "1")
    board.online(7)
    copied = json.loads(home.daemon.read_text()) | {"host": "elsewhere"}
    home.daemon.write_text(json.dumps(copied))
    assert StatusBoard(home, "1").leftover is None


def test_a_damaged_state(home: SiteHome) -> None:
    home.daemon.write_text("{")
    with pytest.raises(StorageError, match=r"daemon\.json"):
        DaemonState.read(home)
    assert StatusBoard(home, "1").leftover is None


def test_one_daemon_a_folder(home: SiteHome) -> None:
    assert not is_running(home)
    with only_daemon(home):
        assert is_running(home)
        with pytest.raises(InputError, match="a daemon runs here already"), only_daemon(home):
            pass
        assert is_running(home)
    assert not is_running(home)


def test_the_lock_ends_with_the_process(home: SiteHome) -> None:
    program = (
        "import sys, time\nfrom pathlib import Path\nfrom client.site_home import SiteHome\nfrom client.status import only_daemon\n"
        "with only_daemon(SiteHome(Path(sys.argv[1]))):\n    print('in', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(home.folder)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline() == b"in\n"
        assert is_running(home)
        process.kill()
        process.wait()
    assert lock_path(home).exists() and not is_running(home)


def test_the_log_is_json_lines_for_its_owner_alone(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    log = DaemonLog(home.logs, sys.stderr)
    log.write("online", {"node": 7, "text": "a\nb\x1b[31m"})
    log.close()
    (line,) = log.path.read_text().splitlines()
    assert {**json.loads(line), "time": 0} == {"time": 0, "event": "online", "node": 7, "text": "a\nb\x1b[31m"}
    assert stat.S_IMODE(log.path.stat().st_mode) == 0o600
    shown = capsys.readouterr().err
    assert "online node=7" in shown and "\x1b" not in shown and shown.count("\n") == 1


def test_the_log_is_rotated(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.daemon_log.MAX_BYTES", 300)
    monkeypatch.setattr("client.daemon_log.KEPT_FILES", 2)
    log = DaemonLog(home.logs)
    for number in range(40):
        log.write("event", {"number": number})
    log.close()
    assert sorted(path.name for path in home.logs.iterdir()) == ["daemon.log", "daemon.log.1", "daemon.log.2"]
    assert '"number": 39' in log.path.read_text()
    assert {stat.S_IMODE(path.stat().st_mode) for path in home.logs.iterdir()} == {0o600}


def test_a_log_that_cannot_be_written_stops_nothing(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    log = DaemonLog(home.logs)
    log._handler.stream.close()
    log._handler.stream = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    log.write("event")
    with suppress(OSError):
        log.close()
    assert "cannot be written" in capsys.readouterr().err
