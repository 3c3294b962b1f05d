# SPDX-License-Identifier: Apache-2.0
"""Certificates that a test shows to the gateway: forged, expired, or of an authority that nobody trusts."""

import ssl
import time
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.crypto.certificates import Authority, certificate_request
from simulations.loopback import Loopback

DAY_SECONDS = 86400.0


@dataclass(frozen=True)
class Card:
    """A certificate and its key, as files."""

    certificate: Path
    key: Path


def tls(authority: Path, card: Card | None) -> ssl.SSLContext:
    """A client context that trusts `authority` and shows `card`."""
    context = ssl.create_default_context(cafile=str(authority))
    if card is not None:
        context.load_cert_chain(card.certificate, card.key)
    return context


def new_authority() -> Authority:
    """An authority of one's own."""
    return Authority.self_signed(ec.generate_private_key(ec.SECP384R1()), time.time())


def real_authority(federation: Loopback) -> Authority:
    """The federation's own: what a thief of its key and passphrase has."""
    passphrase = federation.passphrase.read_text(encoding="ascii").strip().encode()
    home = federation.coordinator
    return Authority.load((home / "ca.crt").read_bytes(), (home / "ca.key").read_bytes(), passphrase)


def issue(authority: Authority, name: str, folder: Path, *, days: int = 1, now: float | None = None) -> Card:
    """A client certificate for `name` on a new key, from `authority`, valid for `days` from `now` on."""
    folder.mkdir(parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    pem = authority.client_certificate(certificate_request(key, name), name, days, time.time() if now is None else now)
    card = Card(folder / f"{name}.crt", folder / f"{name}.pem")
    card.certificate.write_text(pem, encoding="ascii")
    encoding = (serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    card.key.write_bytes(key.private_bytes(*encoding))
    return card
