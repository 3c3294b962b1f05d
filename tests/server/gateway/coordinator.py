# SPDX-License-Identifier: Apache-2.0
"""A real coordinator's folder for the gateway's tests, sites enrolled by the real functions, and the gateway as a real process."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

import server
from common.crypto.certificates import Authority, certificate_request, fingerprint, to_der
from common.crypto.secrets import Secret
from common.crypto.site_keys import SiteKeys
from common.federation import ApprovalRecord, StartRecord
from common.signed import Signed
from server.authority import admit, load_authority, registry
from server.enrolment import enrol, invite
from server.founding import KeyHolder, Wanted, found
from server.home import ServerHome
from server.run_registry import RunRegistry
from server.state import State
from tests.common.flower_compat.attacker import FleetAttacker

PASSPHRASE = b"a passphrase of a test"
RUN_OF = {"north": 11, "south": 22, "both": 2**63 + 33, "nobody": 44}
"""Flower's numbers of the runs that the tests start; each is approved by whom it is called after."""
NODE_OF = {"north": 2**63 + 7, "south": 8}


@dataclass(frozen=True)
class Hospital:
    """An enrolled site: its private keys, and its certificate as files."""

    name: str
    keys: SiteKeys
    certificate: Path
    tls_key: Path
    node_id: int

    @property
    def fingerprint(self) -> str:
        return fingerprint(to_der(self.certificate.read_bytes()))


@dataclass
class Coordinator:
    """A coordinator's folder and everything that is needed to let sites in."""

    home: ServerHome
    authority: Authority

    @classmethod
    def make(cls, folder: Path) -> Coordinator:
        """A new one, on free ports."""
        port, superlink_port = free_ports(2)
        home = ServerHome(folder / "coordinator")
        url = f"https://127.0.0.1:{port}"
        found(home, Wanted(url, listen=f"127.0.0.1:{port}", superlink_port=superlink_port), KeyHolder(lambda new: PASSPHRASE))
        return cls(home, load_authority(home, PASSPHRASE))

    @property
    def url(self) -> str:
        return self.home.settings.url

    @property
    def state(self) -> State:
        return State(self.home.state)

    def hospital(self, name: str, folder: Path, node_id: int | None = None) -> Hospital:
        """Invite, enrol and approve a site; Flower's id of its node is `node_id`."""
        keys = SiteKeys.ensure(folder / name)
        enrol(self.home, keys.request(invite(self.home, name, 1.0)).model_dump_json().encode())
        site = admit(self.home, registry(self.home).by_name(name), self.authority)
        if node_id is not None:
            registry(self.home).set_node_id(name, node_id)
        certificate = folder / name / "tls.crt"
        certificate.write_text(site.certificate or "")
        return Hospital(name, keys, certificate, folder / name / "tls.pem", node_id or 0)

    def start(self, flower_run_id: int, sites: tuple[str, ...], approving: tuple[Hospital, ...]) -> None:
        """Offer a study to `sites`, store the answers of those that approve it, and note the run that Flower calls `flower_run_id`."""
        study = f'{{"study":"{flower_run_id}"}}'
        record = start_record(study, sites)
        signed = record.signed(Secret.read(self.home.study_key).signer)
        with self.state.writing() as database:
            database.execute(
                "INSERT INTO offer (run_id, study_id, study, start, sites, created) VALUES (?, ?, ?, ?, ?, ?)",
                (record.run_id, record.study_id, study, signed.to_json(), json.dumps(sites), record.created),
            )
        for hospital in approving:
            self.record(hospital, approval(hospital, record))
        RunRegistry(self.state).record(flower_run_id, record.run_id, record.study_id, time.time())

    def record(self, hospital: Hospital, signed: Signed) -> None:
        """Store a site's answer."""
        from server.offers import record_approval

        record_approval(self.home, registry(self.home).by_name(hospital.name), signed.to_json().encode())


def start_record(study: str, sites: tuple[str, ...]) -> StartRecord:
    """A start record as the coordinator would sign it."""
    return StartRecord(
        study_id=hashlib.sha256(study.encode()).hexdigest(),
        run_id=secrets.token_hex(16),
        sites=sites,
        min_sites=1,
        initial_weights_sha256="0" * 64,
        receipt_key="1" * 64,
        version="0.1.0",
        created=time.time(),
        expires=time.time() + 3600,
    )


def approval(hospital: Hospital, record: StartRecord, decision: str = "approved") -> Signed:
    """The site's signed answer."""
    answer = ApprovalRecord.model_validate(
        {
            "site": hospital.name,
            "study_id": record.study_id,
            "decision": decision,
            "cohort": "cohort",
            "runs": 1,
            "initial_weights_sha256": record.initial_weights_sha256,
            "client_version": "0.1.0",
            "epsilon_total": None,
            "approved_by": "a test",
            "created": time.time(),
        }
    )
    return answer.signed(hospital.keys.secret.signer)


# ---- the gateway and its callers


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    holders = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [holder.getsockname()[1] for holder in holders]
    for holder in holders:
        holder.close()
    return ports


@contextmanager
def gateway(coordinator: Coordinator, limits: str = "Limits()") -> Iterator[subprocess.Popen[bytes]]:
    """The gateway of `coordinator` as a process, until the block ends. `limits` is Python: other limits than the usual ones."""
    arguments = ["-m", "server.gateway", "--home", str(coordinator.home.folder)]
    if limits != "Limits()":
        arguments = ["-c", _WITH_LIMITS.format(home=str(coordinator.home.folder), limits=limits)]
    place = Path(server.__file__).resolve().parents[1]
    process = subprocess.Popen([sys.executable, *arguments], env=os.environ | {"PYTHONPATH": str(place)}, cwd=coordinator.home.folder)
    try:
        wait_until_up(coordinator, process)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(15)


_WITH_LIMITS = """
from pathlib import Path
from server.gateway.limits import Limits, Rate
from server.gateway.serving import run_gateway
from server.home import ServerHome
run_gateway(ServerHome(Path({home!r})), {limits})
"""


def wait_until_up(coordinator: Coordinator, process: subprocess.Popen[bytes], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    with client(coordinator) as probe:
        while time.monotonic() < end and process.poll() is None:
            try:
                probe.get("/health")
            except httpx.TransportError:
                time.sleep(0.05)
            else:
                return
    raise AssertionError(f"the gateway did not come up (exit code {process.poll()})")


def tls(coordinator: Coordinator, hospital: Hospital | None = None) -> ssl.SSLContext:
    """A client's context: our authority, and the hospital's certificate."""
    context = ssl.create_default_context(cafile=str(coordinator.home.ca_certificate))
    if hospital is not None:
        context.load_cert_chain(hospital.certificate, hospital.tls_key)
    return context


def client(coordinator: Coordinator, hospital: Hospital | None = None) -> httpx.Client:
    """A client of the gateway, with a hospital's certificate or none."""
    return httpx.Client(base_url=coordinator.url, verify=tls(coordinator, hospital), trust_env=False, timeout=20)


@contextmanager
def node(coordinator: Coordinator, hospital: Hospital, signer: Hospital | None = None) -> Iterator[FleetAttacker]:
    """Fleet calls with a hospital's certificate, signed with its node key or that of `signer`, in the name of the signer's node."""
    signing = signer or hospital
    with client(coordinator, hospital) as http:
        yield FleetAttacker(http, signing.keys.node_key, signing.node_id)


def forged(coordinator: Coordinator, authority: Authority, folder: Path, name: str, now: float | None = None) -> Hospital:
    """A certificate in the name of a site from any authority, at any time, on a new key."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    moment = time.time() if now is None else now
    (folder / "tls.crt").write_text(authority.client_certificate(certificate_request(key, name), name, 1, moment))
    (folder / "tls.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return Hospital(name, SiteKeys.ensure(folder / "keys"), folder / "tls.crt", folder / "tls.pem", 0)
