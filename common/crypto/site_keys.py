# SPDX-License-Identifier: Apache-2.0
"""A site's keys: made at the site, never leaving it; what is sent are the public halves and proofs that the private ones are owned.

node.pem   EC P-384   the site as a Flower node            proof: ECDSA over `proof_message`
tls.pem    EC P-256   the site as a TLS client             proof: the certificate request is signed with it
site.key   Secret     Ed25519 signing key, X25519 exchange key and the ledger's keys are derived from it
                      proof: Ed25519 over `proof_message`, which covers the exchange key
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA384

from common.crypto.certificates import certificate_request, checked_request
from common.crypto.private_files import private_folder, read_private, write_new
from common.crypto.secrets import Secret
from common.crypto.signatures import is_signed
from common.enrolment import EnrolRequest, Invitation, SitePublicKeys, proof_message
from common.errors import ProtocolError, StorageError

NODE_KEY_FILE = "node.pem"
TLS_KEY_FILE = "tls.pem"
SITE_KEY_FILE = "site.key"
EXCHANGE_PURPOSE = "exchange"
_FIELD_PRIME = 2**255 - 19


@dataclass(frozen=True)
class SiteKeys:
    """The private keys of one site."""

    node_key: ec.EllipticCurvePrivateKey = field(repr=False)
    tls_key: ec.EllipticCurvePrivateKey = field(repr=False)
    secret: Secret

    @classmethod
    def ensure(cls, folder: Path) -> SiteKeys:
        """The keys in `folder`; those that are missing are made, none is ever overwritten.

        Raises StorageError for a key that is damaged or readable by others, InputError for a folder that others may enter.
        """
        private_folder(folder)
        secret = Secret.ensure(folder / SITE_KEY_FILE)
        return cls(_ensure_key(folder / NODE_KEY_FILE, ec.SECP384R1()), _ensure_key(folder / TLS_KEY_FILE, ec.SECP256R1()), secret)

    @classmethod
    def read(cls, folder: Path) -> SiteKeys:
        """The keys in `folder`, which all have to be there. Raises StorageError."""
        node, tls = (read_ec_key(folder / name, curve) for name, curve in _EC_KEYS)
        return cls(node, tls, Secret.read(folder / SITE_KEY_FILE))

    @cached_property
    def exchange_key(self) -> X25519PrivateKey:
        """The key for secure aggregation."""
        return X25519PrivateKey.from_private_bytes(self.secret.derive(EXCHANGE_PURPOSE))

    def public(self) -> SitePublicKeys:
        """The public halves of all four."""
        return SitePublicKeys(
            node=public_pem(self.node_key.public_key()),
            tls=public_pem(self.tls_key.public_key()),
            signing=self.secret.signer.public_key,
            exchange=self.exchange_key.public_key().public_bytes_raw().hex(),
        )

    def request(self, invitation: Invitation) -> EnrolRequest:
        """The request that uses `invitation`, with all proofs. Made again it differs in its random bits only and counts as the same."""
        keys = self.public()
        message = proof_message(invitation.token, keys)
        return EnrolRequest(
            site=invitation.site,
            token=invitation.token,
            keys=keys,
            certificate_request=self.certificate_request(invitation.site),
            node_proof=self.node_key.sign(message, ec.ECDSA(SHA384())).hex(),
            signing_proof=self.secret.signer.sign(message),
        )

    def certificate_request(self, site: str) -> str:
        """A PKCS#10 request (PEM) for the TLS key: part of enrolment, and what a renewal sends."""
        return certificate_request(self.tls_key, site)


def check_request(request: EnrolRequest) -> None:
    """Check the form of the four keys and the proof of each. Raises ProtocolError naming the first that fails."""
    node = _public_key(request.keys.node, ec.SECP384R1(), "node key")
    tls = _public_key(request.keys.tls, ec.SECP256R1(), "TLS key")
    if checked_request(request.certificate_request, request.site) != tls:
        raise ProtocolError("enrolment: the certificate request is for another key than the TLS key beside it")
    message = proof_message(request.token, request.keys)
    try:
        node.verify(bytes.fromhex(request.node_proof), message, ec.ECDSA(SHA384()))
    except (InvalidSignature, ValueError) as error:
        raise ProtocolError("enrolment: the proof of the node key does not hold; the asker may not own it") from error
    if not is_signed(request.keys.signing, message, request.signing_proof):
        raise ProtocolError("enrolment: the proof of the signing key does not hold; the asker may not own it")
    _check_exchange_key(request.keys.exchange)


def public_pem(key: ec.EllipticCurvePublicKey) -> str:
    """A public key as PEM (SubjectPublicKeyInfo), the form in which Flower knows a node."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def read_ec_key(path: Path, curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    """A private key in a file of its own. Raises StorageError: missing, readable by others, damaged, another curve."""
    try:
        key = serialization.load_pem_private_key(read_private(path), None)
    except (ValueError, TypeError) as error:
        raise StorageError(f"{path}: not a private key; restore it from its backup") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.curve.name != curve.name:
        raise StorageError(f"{path}: not a key on {curve.name}; restore it from its backup")
    return key


def new_ec_key(curve: ec.EllipticCurve) -> bytes:
    """A new private key: PEM (PKCS#8), not encrypted."""
    key = ec.generate_private_key(curve)
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


_EC_KEYS: tuple[tuple[str, ec.EllipticCurve], ...] = ((NODE_KEY_FILE, ec.SECP384R1()), (TLS_KEY_FILE, ec.SECP256R1()))


def _ensure_key(path: Path, curve: ec.EllipticCurve) -> ec.EllipticCurvePrivateKey:
    if not path.exists():
        write_new(path, new_ec_key(curve))
    return read_ec_key(path, curve)


def _public_key(pem: str, curve: ec.EllipticCurve, what: str) -> ec.EllipticCurvePublicKey:
    """Only the one canonical text of a key passes, so that equal keys are equal texts."""
    try:
        key = serialization.load_pem_public_key(pem.encode())
    except ValueError as error:
        raise ProtocolError(f"enrolment: the {what} is not a public key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != curve.name or public_pem(key) != pem:
        raise ProtocolError(f"enrolment: the {what} is not on {curve.name}, or not in canonical form")
    return key


def _check_exchange_key(exchange: str) -> None:
    raw = bytes.fromhex(exchange)
    try:
        X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(raw))
    except ValueError as error:
        raise ProtocolError("enrolment: the exchange key is of small order, every secret shared with it would be known") from error
    if int.from_bytes(raw, "little") >= _FIELD_PRIME:
        raise ProtocolError("enrolment: the exchange key is not in canonical form")
