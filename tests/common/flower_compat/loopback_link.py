# SPDX-License-Identifier: Apache-2.0
"""A real SuperLink on loopback, with TLS and node authentication."""

from __future__ import annotations

import os
import secrets
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec

from common.crypto.certificates import Authority
from common.crypto.site_keys import new_ec_key, public_pem, read_ec_key
from common.flower_compat import control, superlink
from tests.common.flower_compat.server_side import ServerEnd, begun_run, bundle

START_SECONDS = 60.0


@dataclass(frozen=True)
class LinkSettings:
    """Where it listens."""

    superlink_port: int


@dataclass
class LoopbackLink:
    """The SuperLink in `folder`."""

    folder: Path
    settings: LinkSettings = field(default_factory=lambda: LinkSettings(_free_port()))
    authority: Authority = field(default_factory=lambda: Authority.self_signed(ec.generate_private_key(ec.SECP384R1()), time.time()))
    process: subprocess.Popen[bytes] | None = None
    _bundle: bytes = b""

    @property
    def ca_certificate(self) -> Path:
        return self.folder / "ca.crt"

    @property
    def certificate(self) -> Path:
        return self.folder / "server.crt"

    @property
    def certificate_key(self) -> Path:
        return self.folder / "server.key"

    @property
    def superexec_secret(self) -> Path:
        return self.folder / "superexec.secret"

    @property
    def superlink_database(self) -> Path:
        return self.folder / "superlink.sqlite"

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.settings.superlink_port}"

    def prepare(self) -> None:
        """Keys, certificates and the secret."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.ca_certificate.write_text(self.authority.pem)
        self.certificate_key.touch(mode=0o600)
        self.certificate_key.write_bytes(new_ec_key(ec.SECP256R1()))
        key = read_ec_key(self.certificate_key, ec.SECP256R1())
        self.certificate.write_text(self.authority.server_certificate(key.public_key(), ["localhost", "127.0.0.1"], 2, time.time()))
        self.superexec_secret.touch(mode=0o600)
        self.superexec_secret.write_bytes(secrets.token_bytes(32))

    def start(self) -> None:
        """Start the process and wait until it answers."""
        environment = {**os.environ, "FLWR_HOME": str(self.folder), "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
        with (self.folder / "superlink.log").open("ab") as log:
            command = [sys.executable, "-m", "common.flower_compat.superlink", *superlink.arguments(self)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        deadline = time.monotonic() + START_SECONDS
        while not self.is_up():
            assert self.process.poll() is None and time.monotonic() < deadline, (self.folder / "superlink.log").read_text()
            time.sleep(0.05)

    def is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health", verify=self.tls(), trust_env=False, timeout=2).is_success
        except httpx.HTTPError:
            return False

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(10)
            self.process = None

    def tls(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.ca_certificate)
        return context

    def register(self, node_key: ec.EllipticCurvePrivateKey, name: str = "north") -> int:
        return control.register_node(self, public_pem(node_key.public_key()), name)

    def is_online(self, node_id: int) -> bool:
        return any(node.is_online for node in control.nodes(self) if node.node_id == node_id)

    @contextmanager
    def run(self, config: Mapping[str, str]) -> Iterator[ServerEnd]:
        """A run that was started with this configuration, and its server's end."""
        self._bundle = self._bundle or bundle()
        with begun_run(self, self._bundle, config) as end:
            yield end


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextmanager
def running_link(folder: Path) -> Iterator[LoopbackLink]:
    """A SuperLink that runs as long as the block."""
    link = LoopbackLink(folder)
    link.prepare()
    link.start()
    try:
        yield link
    finally:
        link.kill()


def new_node_key() -> ec.EllipticCurvePrivateKey:
    """A node key as Flower accepts it."""
    return ec.generate_private_key(ec.SECP384R1())
