# SPDX-License-Identifier: Apache-2.0
"""The site's own certificate, `tls.crt`: what it must be before it is used. A file that was renamed or mixed up is found here, not at
the gateway."""

from __future__ import annotations

from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from client.site_home import SiteHome
from common.crypto.certificates import is_issued_by, not_after, read_certificate
from common.crypto.site_keys import read_ec_key
from common.errors import ProtocolError, StorageError

EXPIRED: Final = (
    "ask the coordinator to run `wardround-server sites renew` for this site, then run `wardround-client init` again to fetch the new one; "
    "check this machine's clock too"
)
FETCH_AGAIN: Final = "delete tls.crt and run `wardround-client init` again to fetch this site's own"


def read_own(home: SiteHome) -> x509.Certificate | None:
    """The certificate, unchecked; None before there is one. Raises StorageError naming the file."""
    if not home.certificate.exists():
        return None
    try:
        return read_certificate(home.certificate.read_bytes())
    except OSError as error:
        raise StorageError(f"{home.certificate}: cannot be read ({error.strerror}); check its permissions") from error
    except StorageError as error:
        raise StorageError(f"{home.certificate}: is no certificate; {FETCH_AGAIN}") from error


def check_certificate(home: SiteHome, pem: str, now: float) -> x509.Certificate:
    """A certificate that came from the coordinator. Raises ProtocolError for the first thing that is wrong with it."""
    try:
        certificate = read_certificate(pem)
    except StorageError as error:
        raise ProtocolError("what the coordinator sent is no certificate; it was not kept. Tell the coordinator") from error
    problem = certificate_problem(home, certificate, now)
    if problem is not None:
        raise ProtocolError(f"the certificate that the coordinator sent was not kept: {problem}")
    return certificate


def certificate_problem(home: SiteHome, certificate: x509.Certificate, now: float) -> str | None:
    """What is wrong with it and what to do, or None: name, authority, key, dates."""
    site = home.read_invitation().site
    names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if names != [site]:
        whose = ", ".join(names) or "nobody"
        return f"it is for {whose}, this site is {site}: the files of two sites were mixed up, or the site was renamed; {FETCH_AGAIN}"
    if not is_issued_by(certificate, read_certificate(home.read_invitation().ca_certificate)):
        return f"another authority issued it than that of the invitation; {FETCH_AGAIN}"
    if certificate.public_key() != read_ec_key(home.tls_key, ec.SECP256R1()).public_key():
        return f"it is for another key than {home.tls_key.name}; {FETCH_AGAIN}"
    if certificate.not_valid_before_utc.timestamp() > now:
        return "it is not valid yet; check this machine's clock (date, NTP)"
    if not_after(certificate) <= now:
        return f"it expired on {certificate.not_valid_after_utc:%Y-%m-%d}; {EXPIRED}"
    return None
