# SPDX-License-Identifier: Apache-2.0
"""The systemd units: what they promise, what systemd says about them, and that the commands in them exist."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.command_lines import problem
from tests.deploy.units import CLIENT_UNIT, GPU_DROP_IN, SERVER_UNIT, Unit

UNITS = pytest.mark.parametrize("path", [SERVER_UNIT, CLIENT_UNIT], ids=["server", "client"])
NEEDS_SYSTEMD = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not on this machine")
MOST_EXPOSED = 1.5
PROMISED = (
    *("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "PrivateUsers", "PrivateIPC", "ProtectHome", "ProtectClock"),
    *("ProtectControlGroups", "ProtectHostname", "ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables"),
    *("LockPersonality", "RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID"),
)


@UNITS
def test_a_unit_gives_away_every_right_that_it_does_not_need(path: Path) -> None:
    unit = Unit.read(path)
    assert [name for name in PROMISED if not unit.is_on(name)] == []
    assert unit.one("ProtectSystem") == "strict"
    assert (unit.words("CapabilityBoundingSet"), unit.words("AmbientCapabilities")) == ([], [])
    assert unit.values["Service.CapabilityBoundingSet"] == [""]
    assert set(unit.words("RestrictAddressFamilies")) == {"AF_UNIX", "AF_INET", "AF_INET6"}
    assert unit.values["Service.SystemCallFilter"] == ["@system-service", "~@privileged @resources"]
    assert unit.one("User") not in ("root", "")
    assert (unit.one("UMask"), unit.one("StateDirectoryMode"), unit.one("LimitCORE")) == ("0077", "0700", "0")


@UNITS
def test_a_unit_comes_back_and_never_gives_up(path: Path) -> None:
    unit = Unit.read(path)
    assert unit.one("Restart") == "always"
    assert unit.values["Unit.StartLimitIntervalSec"] == ["0"]
    assert unit.one("OOMPolicy") == "continue", "a training process killed for memory must not end the service"
    assert unit.one("KillMode") == "mixed", "the main process stops the others in its own order"


def test_only_the_coordinator_may_never_write_and_execute() -> None:
    assert Unit.read(SERVER_UNIT).is_on("MemoryDenyWriteExecute")
    assert not Unit.read(CLIENT_UNIT).is_on("MemoryDenyWriteExecute")


def test_a_hospital_opens_no_port_but_that_of_its_metrics() -> None:
    from client.site_config import SiteConfig

    unit = Unit.read(CLIENT_UNIT)
    _, _, port = str(SiteConfig.model_fields["metrics"].default).rpartition(":")
    assert unit.words("SocketBindDeny") == ["any"]
    assert unit.words("SocketBindAllow") == [f"ipv4:tcp:{port}"]


@UNITS
def test_the_time_to_stop_is_longer_than_we_need(path: Path) -> None:
    from client import daemon
    from server import children, supervisor

    needs = {
        SERVER_UNIT: 3 * supervisor.STOP_SECONDS + children.GROUP_SECONDS + children.KILL_SECONDS,
        CLIENT_UNIT: daemon.STOP_SECONDS + 5,
    }
    assert int(Unit.read(path).one("TimeoutStopSec")) >= needs[path] + 10


@UNITS
def test_the_command_of_a_unit_exists(path: Path) -> None:
    command = Unit.read(path).one("ExecStart")
    program, _, rest = command.partition(" ")
    assert problem(f"{Path(program).name} {rest}") == ""
    assert rest.endswith(f"--home {Unit.read(path).one('WorkingDirectory')}")


@UNITS
@NEEDS_SYSTEMD
def test_systemd_reads_every_line(path: Path, tmp_path: Path) -> None:
    copy = tmp_path / path.name
    copy.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={shutil.which('true')}", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
    done = verify(copy)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    copy.write_text(copy.read_text(encoding="utf-8").replace("NoNewPrivileges=true", "NoNewPriviledges=true"))
    assert "NoNewPriviledges" in verify(copy).stderr, "systemd-analyze would not have said anything"


@pytest.mark.parametrize(
    ("path", "drop_ins", "most"),
    [(SERVER_UNIT, [], MOST_EXPOSED), (CLIENT_UNIT, [], MOST_EXPOSED), (CLIENT_UNIT, [GPU_DROP_IN], MOST_EXPOSED + 0.5)],
    ids=["server", "client", "client with a card"],
)
@NEEDS_SYSTEMD
def test_systemd_calls_it_little_exposed(path: Path, drop_ins: list[Path], most: float, tmp_path: Path) -> None:
    unit = tmp_path / path.name
    added = [line for drop_in in drop_ins for line in drop_in.read_text(encoding="utf-8").splitlines()]
    unit.write_text(path.read_text(encoding="utf-8").replace("[Install]", "\n".join([*added, "[Install]"])))
    done = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)], capture_output=True, text=True)
    found = re.search(r"Overall exposure level for .*: ([\d.]+)", done.stdout)
    assert found, done.stdout + done.stderr
    assert float(found[1]) < most


def verify(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True)
