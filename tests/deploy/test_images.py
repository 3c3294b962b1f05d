# SPDX-License-Identifier: Apache-2.0
"""The Dockerfiles, read: no container engine builds them here. What can be run without one, the health checks, is run."""

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.deploy.command_lines import problem
from tests.deploy.units import DEPLOY, Dockerfile

ROOT = DEPLOY.parent
ENDS = pytest.mark.parametrize("end", ["server", "client"])


def dockerfile(end: str) -> Dockerfile:
    return Dockerfile.read(DEPLOY / f"Dockerfile.{end}")


@ENDS
def test_an_image_is_built_in_stages_and_runs_as_nobody_special(end: str) -> None:
    found = dockerfile(end)
    assert len(found.stages) == 2
    assert found.stages[0][0][1].endswith(" AS build")
    assert found.last("USER") == "10001:10001"
    names = [name for name, _ in found.stages[1]]
    assert "RUN" not in names[names.index("USER") :]
    assert "ADD" not in {name for stage in found.stages for name, _ in stage}
    assert found.last("COPY").startswith("--from=build /opt/wardround ")


@ENDS
def test_an_image_starts_the_command_under_a_process_that_buries_the_dead(end: str) -> None:
    found = dockerfile(end)
    entry, command = json.loads(found.last("ENTRYPOINT")), json.loads(found.last("CMD"))
    assert entry == ["/usr/bin/tini", "--", f"wardround-{end}"]
    assert problem(shlex.join([entry[-1], *command])) == ""
    assert any(name == "RUN" and " tini " in f" {rest} " for name, rest in found.stages[1])


@ENDS
def test_state_and_cache_are_volumes_of_the_user(end: str) -> None:
    found = dockerfile(end)
    assert json.loads(found.last("VOLUME")) == ["/state", "/cache"]
    variable = {"server": "WARDROUND_SERVER", "client": "WARDROUND_SITE"}[end]
    assert {f"{variable}=/state", "WARDROUND_CACHE=/cache"} <= set(found.last("ENV").split())
    assert "--owner 10001 --group 10001 --mode 0700 /state /cache" in found.last("RUN")


@ENDS
def test_everything_that_is_copied_is_there_and_sent_to_the_builder(end: str) -> None:
    copied = dockerfile(end).copied()
    sent = (DEPLOY / f"Dockerfile.{end}.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {"pyproject.toml", "common", "client", "server"} <= set(copied)
    assert "*" in sent and {line[1:] for line in sent if line.startswith("!")} == set(copied)
    if (ROOT / "common").exists():  # the tests of a built wheel have no sources beside them
        assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_health_check_of_a_hospital_tells_whether_its_daemon_runs(tmp_path: Path) -> None:
    from client.site_home import SiteHome
    from client.status import only_daemon

    (tmp_path / "site.yaml").touch()
    command = health_check("client")
    assert healthy(command, WARDROUND_SITE=tmp_path) == 1
    with only_daemon(SiteHome(tmp_path)):
        assert healthy(command, WARDROUND_SITE=tmp_path) == 0


def test_the_health_check_of_the_coordinator_says_no_where_nothing_runs(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    from common.crypto.certificates import Authority
    from server.home import ServerHome, ServerSettings

    home = ServerHome(tmp_path)
    home.ca_certificate.write_text(Authority.self_signed(ec.generate_private_key(ec.SECP384R1()), time.time()).pem)
    home.write_settings(ServerSettings(url="https://127.0.0.1:1", listen_host="127.0.0.1", listen_port=1, superlink_port=2))
    assert healthy(health_check("server"), WARDROUND_SERVER=tmp_path) == 1


def health_check(end: str) -> list[str]:
    """The command of the image's health check, with this Python."""
    words = json.loads(dockerfile(end).last("HEALTHCHECK").partition("CMD ")[2])
    return [sys.executable, *words[1:]]


def healthy(command: list[str], **variables: Path) -> int:
    path = os.pathsep.join(dict.fromkeys([str(ROOT), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path, **{name: str(value) for name, value in variables.items()}})
    return done.returncode
