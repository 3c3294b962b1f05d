# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process, against a real SuperLink: start, SIGTERM, kill -9, a second one, and its faults."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from client.daemon import Daemon
from client.daemon_log import DaemonLog
from client.site_home import SiteHome
from client.status import Stage, is_running
from tests.client.enrolled import certified
from tests.client.node_site import NodeSite, approved_site, code, offered_study, wait_until, write_data
from tests.common.flower_compat.loopback_link import LoopbackLink, running_link

SOON = 10.0


@pytest.fixture(scope="module")
def link(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackLink]:
    with running_link(tmp_path_factory.mktemp("daemon-link")) as started:
        yield started


@pytest.fixture(scope="module")
def approved(tmp_path_factory: pytest.TempPathFactory, link: LoopbackLink) -> NodeSite:
    folder = tmp_path_factory.mktemp("daemon-site")
    write_data(folder / "chest.npz", offered_study())
    return approved_site(folder, link, folder / "chest.npz")


@pytest.fixture
def site(tmp_path: Path, approved: NodeSite) -> NodeSite:
    """The site right after the approval, with its certificate."""
    shutil.copytree(approved.home.folder, tmp_path / "north")
    home = certified(SiteHome(tmp_path / "north"), approved.link.authority)
    return NodeSite(home, approved.link, approved.study, approved.start)


@contextmanager
def daemon(site: NodeSite) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon, killed at the end if it still runs."""
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    with (site.home.folder / "output").open("ab") as output:
        command = [sys.executable, "-m", "tests.client.daemon_child", str(site.home.folder)]
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        wait_until(lambda: process.poll() is not None or (is_running(site.home) and site.home.daemon.exists()), 60)
        yield process
    finally:
        process.kill()
        process.wait()


def stopped(process: subprocess.Popen[bytes]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(30)


@pytest.mark.slow
def test_sigterm_in_training(site: NodeSite) -> None:
    site.behave("sleep 60")
    with site.link.run(site.config) as server, daemon(site) as process:
        site.wait_online(60)
        sent = server.send(site.instruction(), site.node_id)
        worker = site.begun()
        assert (site.state.stage, site.state.round, site.state.run_id) == (Stage.WORKING, 1, site.run_id)
        told = time.monotonic()
        process.send_signal(signal.SIGTERM)
        assert code(server.reply(sent, SOON)) == "INTERRUPTED"
        assert process.wait(SOON) == 0 and time.monotonic() - told < SOON
        assert site.state.stage is Stage.STOPPED and site.state.in_hand is None
        assert not site.link.is_online(site.node_id) and not is_running(site.home)
        with pytest.raises(ProcessLookupError):
            os.kill(worker, 0)


@pytest.mark.slow
def test_killed_in_training_and_started_again(site: NodeSite) -> None:
    site.behave("sleep 60")
    with site.link.run(site.config) as server:
        with daemon(site) as process:
            site.wait_online(60)
            sent = server.send(site.instruction(1), site.node_id)
            worker = psutil.Process(site.begun())
            process.kill()
            process.wait()
        _, alive = psutil.wait_procs([worker], SOON)
        assert not alive or worker.status() == psutil.STATUS_ZOMBIE, "the training process has outlived its daemon"
        assert site.state.in_hand is not None
        site.behave("")
        with daemon(site) as process:
            assert code(server.reply(sent, SOON)) == "INTERRUPTED"
            assert code(server.ask(site.instruction(1), site.node_id, seconds=60)) == "update"
            assert "the daemon before this one ended without stopping" in (site.home.logs / "daemon.log").read_text()
            assert stopped(process) == 0


def test_a_second_daemon_and_the_words_of_the_first_start(site: NodeSite) -> None:
    def start(*options: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "client.cli", "start", "--home", str(site.home.folder), *options]
        return subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60)

    without = start()
    assert without.returncode == 2 and "--code" in without.stderr
    wrong = start("--code", " ".join(["abandon"] * 11 + ["about"]))
    assert wrong.returncode == 2 and not (site.home.logs / "daemon.log").exists()
    from client.enrol import confirmation_words

    with daemon(site) as process:
        second = start("--code", confirmation_words(site.home))
        assert second.returncode == 2 and "a daemon runs here already" in second.stderr
        assert site.state.pid == process.pid
        assert stopped(process) == 0


def test_it_waits_for_the_approval_and_stops_while_it_waits(site: NodeSite) -> None:
    """A SuperLink alone knows nothing of our calls: the answer is no, and it is tried again."""
    site.home.certificate.unlink()
    with daemon(site) as process:
        wait_until(lambda: site.state.last_error is not None)
        assert site.state.stage is Stage.NOT_WELCOME and process.poll() is None
        assert stopped(process) == 0


def test_a_thread_that_fails_is_started_again(site: NodeSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one place where a fault is put in by hand: nothing is known to bring it about."""
    monkeypatch.setattr("client.daemon.RESTART_SECONDS", 0.05)
    monkeypatch.setattr("client.daemon.WATCH_SECONDS", 0.05)
    log = DaemonLog(site.home.logs)
    running = Daemon(site.home, log)
    turns: list[str] = []

    def fails() -> None:
        turns.append("x")
        if len(turns) == 3:
            running._stopping.set()
        raise ZeroDivisionError("patient 42")

    monkeypatch.setattr(running, "_run_node", fails)
    running._take_part()
    log.close()
    lines = [json.loads(line) for line in log.path.read_text().splitlines()]
    faults = [line for line in lines if line["event"] == "fault"]
    assert len(turns) == 3 and {fault["error"] for fault in faults} == {"ZeroDivisionError"}
    assert "patient 42" in site.home.log.read_text() and "patient 42" not in log.path.read_text()


def test_the_node_goes_where_site_yaml_says(site: NodeSite) -> None:
    """The coordinator may move; the invitation then names the old place."""
    text = site.home.config.read_text()
    old = site.home.read_invitation().url
    assert text.count(old) == 1
    site.home.config.write_text(text.replace(old, "https://127.0.0.1:9"))
    log = DaemonLog(site.home.logs)
    connection = Daemon(site.home, log)._connect()
    connection.close()
    log.close()
    assert connection._url == "https://127.0.0.1:9"
