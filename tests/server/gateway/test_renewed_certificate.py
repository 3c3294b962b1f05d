# SPDX-License-Identifier: Apache-2.0
"""A renewed server certificate is shown without a restart; one that does not fit its key is not taken."""

import ssl
import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from common.crypto.certificates import fingerprint, to_der
from common.crypto.private_files import replace_private
from common.crypto.site_keys import read_ec_key
from server.certificate_watch import CertificateWatch
from server.home import ServerHome
from simulations.processes import wait_until
from tests.server.gateway.coordinator import Coordinator, client, gateway


def shown(coordinator: Coordinator) -> str:
    """What a new connection is shown."""
    settings = coordinator.home.settings
    return fingerprint(to_der(ssl.get_server_certificate(("127.0.0.1", settings.listen_port)).encode()))


def issue(coordinator: Coordinator, days: int) -> str:
    """A certificate on the same key, as `init` makes it when the old one ends soon; its fingerprint."""
    home = coordinator.home
    key = read_ec_key(home.certificate_key, ec.SECP256R1()).public_key()
    pem = coordinator.authority.server_certificate(key, ("127.0.0.1", "localhost"), days, time.time())
    replace_private(home.certificate, pem.encode())
    return fingerprint(to_der(pem.encode()))


def test_the_gateway_takes_up_a_renewed_certificate(tmp_path: Path) -> None:
    coordinator = Coordinator.make(tmp_path)
    with gateway(coordinator) as process, client(coordinator) as kept:
        kept.get("/health")
        before = shown(coordinator)
        renewed = issue(coordinator, 90)
        assert renewed != before
        wait_until(lambda: shown(coordinator) == renewed, "the new certificate", 30)
        assert kept.get("/health").status_code == 503, "a connection that was open goes on"
        assert process.poll() is None
    assert "new certificate is in use" in (coordinator.home.logs / "gateway.log").read_text()


def test_only_a_pair_that_fits_counts(tmp_path: Path) -> None:
    coordinator = Coordinator.make(tmp_path / "one")
    other = Coordinator.make(tmp_path / "other")
    home: ServerHome = coordinator.home
    watch, key = CertificateWatch(home), home.certificate_key.read_bytes()
    assert not watch.has_new()
    replace_private(home.certificate_key, other.home.certificate_key.read_bytes())
    assert not watch.has_new()
    assert "cannot be used" in watch.problem
    home.certificate.unlink()
    assert not watch.has_new()
    replace_private(home.certificate_key, key)
    issue(coordinator, 90)
    assert watch.has_new()
    assert watch.problem == ""
    assert not watch.has_new()
