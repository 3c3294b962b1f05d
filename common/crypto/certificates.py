# SPDX-License-Identifier: Apache-2.0
"""X.509 certificates of one federation: an authority of its own, one server, one client certificate a site.

    authority   EC P-384, signs server and clients and nothing below them (path length 0); its key file is encrypted
    server      serverAuth only, for the names and addresses that sites and we ourselves call it by
    client      clientAuth only, common name = the site's name; made from a PKCS#10 request

A request counts only when its own signature holds, which shows that the asker has the private key, and when it names the site that was
invited; nothing else in it (extensions, further names) is copied. Certificates are in PEM, times in seconds since the epoch.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import InputError, ProtocolError, StorageError

AUTHORITY_NAME = "Wardround federation authority"
AUTHORITY_DAYS = 3650
BACKDATED_SECONDS = 600.0
"""A certificate is valid from so long before it was made: clocks differ."""
DAY_SECONDS = 86400.0
_CRITICAL = True
_DNS_NAME = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?")


@dataclass(frozen=True)
class Authority:
    """Certificate and private key of the federation's authority."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def load(cls, certificate_pem: bytes, key_pem: bytes, passphrase: bytes) -> Authority:
        """Raises InputError for a wrong passphrase or a key of another authority, StorageError for a damaged file."""
        certificate, key = read_certificate(certificate_pem), read_authority_key(key_pem, passphrase)
        if certificate.public_key() != key.public_key():
            raise InputError("this is the key of another authority than the one whose certificate is in ca.crt; give the right --ca-key")
        return cls(certificate, key)

    @classmethod
    def self_signed(cls, key: ec.EllipticCurvePrivateKey, now: float) -> Authority:
        """An authority on `key` that starts now."""
        name = _named(AUTHORITY_NAME)
        builder = _dated(x509.CertificateBuilder(), now, AUTHORITY_DAYS).subject_name(name).issuer_name(name)
        usage = _usage(signs_certificates=True)
        for extension, critical in (
            (x509.BasicConstraints(ca=True, path_length=0), _CRITICAL),
            (usage, _CRITICAL),
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), not _CRITICAL),
        ):
            builder = builder.add_extension(extension, critical)
        return cls(builder.public_key(key.public_key()).sign(key, SHA384()), key)

    @property
    def pem(self) -> str:
        """The authority's certificate."""
        return to_pem(self.certificate)

    def server_certificate(self, public_key: ec.EllipticCurvePublicKey, names: Iterable[str], days: int, now: float) -> str:
        """A certificate for the server called by `names` (host names and IP addresses). Raises InputError for an impossible name."""
        names = list(dict.fromkeys(names))
        alternative = x509.SubjectAlternativeName([_general_name(name) for name in names])
        return self._issue(public_key, "Wardround coordinator", ExtendedKeyUsageOID.SERVER_AUTH, days, now, alternative)

    def client_certificate(self, request_pem: str, site: str, days: int, now: float) -> str:
        """A certificate for `site` on the key of its request. Raises ProtocolError for a request that `checked_request` refuses."""
        return self._issue(checked_request(request_pem, site), site, ExtendedKeyUsageOID.CLIENT_AUTH, days, now, None)

    def _issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        common_name: str,
        use: x509.ObjectIdentifier,
        days: int,
        now: float,
        alternative: x509.SubjectAlternativeName | None,
    ) -> str:
        if not_after(self.certificate) <= now:
            raise InputError("the authority's certificate has expired; a new coordinator's folder and new invitations are needed")
        issuer_key = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = _dated(x509.CertificateBuilder(), now, days, until=not_after(self.certificate)).public_key(public_key)
        builder = builder.subject_name(_named(common_name)).issuer_name(self.certificate.subject)
        for extension, critical in (
            (x509.BasicConstraints(ca=False, path_length=None), _CRITICAL),
            (_usage(signs_certificates=False), _CRITICAL),
            (x509.ExtendedKeyUsage([use]), _CRITICAL),
            (x509.SubjectKeyIdentifier.from_public_key(public_key), not _CRITICAL),
            (issuer_key, not _CRITICAL),
            (alternative, not _CRITICAL),
        ):
            if extension is not None:
                builder = builder.add_extension(extension, critical)
        return to_pem(builder.sign(self.key, SHA384()))


def certificate_request(key: ec.EllipticCurvePrivateKey, site: str) -> str:
    """A PKCS#10 request for `site`, signed with `key`."""
    request = x509.CertificateSigningRequestBuilder().subject_name(_named(site)).sign(key, SHA256())
    return request.public_bytes(serialization.Encoding.PEM).decode()


def checked_request(request_pem: str, site: str) -> ec.EllipticCurvePublicKey:
    """The key that a request is for. Raises ProtocolError: not a request, not signed by that key, another name, not P-256."""
    try:
        request = x509.load_pem_x509_csr(request_pem.encode())
        signed, names, key = request.is_signature_valid, [name.value for name in request.subject], request.public_key()
    except (ValueError, InvalidSignature, x509.InvalidVersion) as error:
        raise ProtocolError(f"certificate request: cannot be read ({type(error).__name__})") from error
    if not signed:
        raise ProtocolError("certificate request: not signed with the key that it names, so the asker may not own that key")
    if len(names) != 1 or names[0] != site or next(iter(request.subject)).oid != NameOID.COMMON_NAME:
        raise ProtocolError(f"certificate request: it names {str(names)[:100]}, but the invitation is for {site}")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise ProtocolError("certificate request: the TLS key has to be EC P-256")
    return key


def new_authority_key(passphrase: bytes) -> bytes:
    """A new key for an authority: PEM (PKCS#8), encrypted with `passphrase`."""
    encryption = serialization.BestAvailableEncryption(passphrase)
    key = ec.generate_private_key(ec.SECP384R1())
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)


def read_authority_key(key_pem: bytes, passphrase: bytes) -> ec.EllipticCurvePrivateKey:
    """Raises InputError for a wrong passphrase or what is not an encrypted P-384 key."""
    try:
        key = serialization.load_pem_private_key(key_pem, passphrase)
    except TypeError as error:
        raise InputError("the authority's key is not encrypted; this is not the file that init wrote") from error
    except ValueError as error:
        raise InputError("the authority's key does not open: wrong passphrase, or a damaged file") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise InputError("the authority's key is not EC P-384; this is not the file that init wrote")
    return key


def read_certificate(pem: str | bytes) -> x509.Certificate:
    """Raises StorageError when `pem` is not a certificate."""
    try:
        return x509.load_pem_x509_certificate(pem.encode() if isinstance(pem, str) else pem)
    except ValueError as error:
        raise StorageError("not a certificate in PEM; restore the file from its backup") from error


def to_pem(certificate: x509.Certificate) -> str:
    """The certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def to_der(pem: str | bytes) -> bytes:
    """The certificate's bytes as they are hashed and sent. Raises StorageError."""
    return read_certificate(pem).public_bytes(serialization.Encoding.DER)


def fingerprint(der: bytes) -> str:
    """SHA-256 of a certificate (DER) in hexadecimal."""
    return hashlib.sha256(der).hexdigest()


def not_after(certificate: x509.Certificate | str | bytes) -> float:
    """When a certificate ends. Raises StorageError for text that is no certificate."""
    loaded = certificate if isinstance(certificate, x509.Certificate) else read_certificate(certificate)
    return loaded.not_valid_after_utc.timestamp()


def names_of(certificate: x509.Certificate) -> list[str]:
    """Host names and addresses that a server certificate is for."""
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in alternative]


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether `authority` signed `certificate`."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _named(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _dated(builder: x509.CertificateBuilder, now: float, days: int, until: float | None = None) -> x509.CertificateBuilder:
    end = now + days * DAY_SECONDS
    end = end if until is None else min(end, until)
    builder = builder.serial_number(x509.random_serial_number())
    return builder.not_valid_before(_utc(now - BACKDATED_SECONDS)).not_valid_after(_utc(end))


def _utc(seconds: float) -> datetime.datetime:
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        return _dns_name(name)


def _dns_name(name: str) -> x509.DNSName:
    if not _DNS_NAME.fullmatch(name) or len(name) > 253:
        raise InputError(f"{name[:100]}: neither a host name nor an IP address (write other alphabets in their xn-- form)")
    return x509.DNSName(name.lower())


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
