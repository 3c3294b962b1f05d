# SPDX-License-Identifier: Apache-2.0
"""Flower's SuperLink as we run it: on loopback, process isolation with a secret, authenticated nodes, nothing installed at run time.

`python -m common.flower_compat.superlink …` is Flower's own command, with large objects in files (`object_store`), layers that are asked
for their own paths only (`superlink_layers`), questions that wait for a message (`superlink_waiting`) and less bookkeeping (`link_state`).
The rest is how our processes reach it: over TLS with our
certificate authority, and never through a proxy, whatever the environment says.
"""

from __future__ import annotations

import ssl
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from common.memory import keep_what_is_loaded

if TYPE_CHECKING:
    import httpx
    from flwr.supercore.protobuf.client import ProtobufClient

LOOPBACK = "127.0.0.1"
TIMEOUT_SECONDS = 30.0


class SuperLinkSettings(Protocol):
    """The settings that say where the SuperLink is."""

    @property
    def superlink_port(self) -> int:
        """Port on loopback."""


class CoordinatorHome(Protocol):
    """What is needed of the coordinator's folder (`server.home.ServerHome`)."""

    @property
    def settings(self) -> SuperLinkSettings:
        """Where the SuperLink is."""

    @property
    def ca_certificate(self) -> Path:
        """Certificate of the authority."""

    @property
    def certificate(self) -> Path:
        """The server's certificate."""

    @property
    def certificate_key(self) -> Path:
        """Its key."""

    @property
    def superexec_secret(self) -> Path:
        """The secret shared with the executor."""

    @property
    def superlink_database(self) -> Path:
        """Flower's database."""


def address(home: CoordinatorHome) -> str:
    """Host and port of the SuperLink."""
    return f"{LOOPBACK}:{home.settings.superlink_port}"


def arguments(home: CoordinatorHome) -> list[str]:
    """The SuperLink's command line: names of files, never their content."""
    return [
        *("--host", LOOPBACK, "--port", str(home.settings.superlink_port)),
        *("--ssl-certfile", str(home.certificate), "--ssl-keyfile", str(home.certificate_key)),
        *("--ssl-ca-certfile", str(home.ca_certificate), "--database", str(home.superlink_database)),
        *("--isolation", "process", "--superexec-auth-secret-file", str(home.superexec_secret)),
        *("--enable-supernode-auth", "--disable-runtime-dependency-installation"),
    ]


def direct(client: ProtobufClient, ca_certificate: bytes) -> None:
    """Make a client of Flower's trust our authority alone and go round any proxy."""
    client.close()
    client._client = _http_client(ca_certificate)


def _http_client(ca_certificate: bytes) -> httpx.Client:
    import httpx

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=ca_certificate.decode("ascii"))
    return httpx.Client(verify=context, timeout=TIMEOUT_SECONDS, trust_env=False)


def main(command_line: Sequence[str]) -> None:
    """Run the SuperLink until it is told to stop."""
    from flwr.superlink import config_loader, extensions
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware

    from common.flower_compat.link_state import use_lean_state
    from common.flower_compat.object_store import FileObjectStoreFactory
    from common.flower_compat.superlink_layers import WholeBody, spare_layers
    from common.flower_compat.superlink_waiting import Bells, Waiting

    vars(config_loader)["ObjectStoreFactory"] = FileObjectStoreFactory
    bells = Bells()
    use_lean_state(bells)
    spare_layers()
    vars(extensions)["get_middleware"] = lambda: (Middleware(WholeBody), Middleware(Waiting, bells=bells))
    sys.argv = ["flower-superlink", *command_line]
    keep_what_is_loaded()
    flower_superlink()


if __name__ == "__main__":
    main(sys.argv[1:])
