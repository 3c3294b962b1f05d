# SPDX-License-Identifier: Apache-2.0
"""Flower's own command line against the gateway: as a stranger, and as a hospital that puts its certificate in front of it.

`flwr` knows no client certificate, so the hospital runs a tunnel that adds its own. What comes through is then an insider's call, and the
gateway has to know that these are not a site's calls.
"""

from pathlib import Path
from subprocess import CompletedProcess

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.common.flower_compat.attacker import flwr_app, flwr_command, new_node_key
from tests.support.certificates import tls
from tests.support.federation import GUEST, Federation
from tests.support.tunnel import tunnel

UNSIGNED_64 = 1 << 64
COMMANDS = ("run", "stop", "register")
CALLS = {"run": "start-run", "stop": "stop-run", "register": "register-node"}


def words_of(command: str, federation: Federation, folder: Path) -> tuple[str, ...]:
    """The command line of one attempt."""
    if command == "run":
        return ("run", str(flwr_app(folder / "app")), "target")
    if command == "stop":
        runs = (int(row["run_id"]) % UNSIGNED_64 for row in federation.superlink_rows("SELECT run_id FROM run"))
        return ("stop", str(next(runs, 1)), "target")
    key = folder / "node.pub"
    key.write_bytes(new_node_key().public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    return ("supernode", "register", str(key), "target", "--name", "evil")


def stored(federation: Federation) -> list[dict[str, object]]:
    """What Flower knows: its runs and how they stand, its nodes."""
    return [
        *federation.superlink_rows("SELECT run_id FROM run ORDER BY run_id"),
        *federation.superlink_rows("SELECT node_id FROM node ORDER BY node_id"),
    ]


def refused(federation: Federation, command: str) -> dict[str, object]:
    """The line of the access log about the call of a command."""
    return next(line for line in reversed(federation.access_log()) if line.get("path") == f"/v1/control/{CALLS[command]}")


@pytest.mark.parametrize("command", COMMANDS)
def test_flowers_own_command_reaches_nothing(federation: Federation, tmp_path: Path, command: str) -> None:
    before = stored(federation)
    address = federation.url.removeprefix("https://")
    done = flwr_command(tmp_path / "flwr", address, federation.coordinator / "ca.crt", *words_of(command, federation, tmp_path))
    assert done.returncode != 0, done.stdout
    assert refused(federation, command)["code"] == "NO_CERTIFICATE"
    assert stored(federation) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_flowers_own_command_with_a_hospitals_certificate_reaches_nothing(federation: Federation, tmp_path: Path, command: str) -> None:
    before = stored(federation)
    done = through_tunnel(federation, tmp_path, command)
    assert done.returncode != 0, done.stdout
    line = refused(federation, command)
    assert (line["site"], line["status"], line["code"]) == (GUEST, 403, "CALL_FORBIDDEN")
    assert stored(federation) == before


def through_tunnel(federation: Federation, folder: Path, command: str) -> CompletedProcess[str]:
    """The command, its connections inside TLS with the guest's certificate."""
    context = tls(federation.coordinator / "ca.crt", federation.card(GUEST))
    with tunnel(federation.ports[0], context) as port:
        return flwr_command(folder / "flwr", f"127.0.0.1:{port}", None, *words_of(command, federation, folder))
