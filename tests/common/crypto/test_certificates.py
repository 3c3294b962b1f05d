# SPDX-License-Identifier: Apache-2.0
"""Certificates as real TLS ends see them (handshakes in memory), and requests that do not count."""

import ssl
import time
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from common.crypto.certificates import (
    AUTHORITY_DAYS,
    DAY_SECONDS,
    Authority,
    certificate_request,
    checked_request,
    fingerprint,
    is_issued_by,
    names_of,
    new_authority_key,
    not_after,
    read_authority_key,
    read_certificate,
    to_der,
)
from common.errors import InputError, ProtocolError, StorageError

NOW = 1_790_000_000.0
PASSPHRASE = b"correct horse battery staple"


def p256() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def new_authority(now: float = NOW) -> Authority:
    return Authority.self_signed(ec.generate_private_key(ec.SECP384R1()), now)


@pytest.fixture(scope="module")
def live() -> Authority:
    """An authority of today: OpenSSL looks at the machine's clock."""
    return new_authority(time.time())


def test_the_authority_signs_ends_and_no_further_authorities() -> None:
    extensions = new_authority().certificate.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value.ca, constraints.value.path_length) == (True, True, 0)
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.digital_signature) == (True, False)


def test_a_site_is_named_as_it_was_invited_and_may_only_be_a_client() -> None:
    authority = new_authority()
    pem = authority.client_certificate(certificate_request(p256(), "north"), "north", 365, NOW)
    certificate = read_certificate(pem)
    assert certificate.subject.rfc4514_string() == "CN=north"
    assert [use.dotted_string for use in certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value] == [
        "1.3.6.1.5.5.7.3.2"
    ]
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert is_issued_by(certificate, authority.certificate)
    assert not is_issued_by(certificate, new_authority().certificate)
    assert not_after(pem) == NOW + 365 * DAY_SECONDS
    assert fingerprint(to_der(pem)) == certificate.fingerprint(SHA256()).hex()


def test_serial_numbers_are_random() -> None:
    authority, request = new_authority(), certificate_request(p256(), "north")
    serials = {read_certificate(authority.client_certificate(request, "north", 1, NOW)).serial_number for _ in range(5)}
    assert len(serials) == 5
    assert min(serials) > 1 << 64


def test_no_certificate_outlives_its_authority() -> None:
    authority = new_authority()
    end = NOW + AUTHORITY_DAYS * DAY_SECONDS
    late = authority.client_certificate(certificate_request(p256(), "north"), "north", 365, end - DAY_SECONDS)
    assert not_after(late) == end
    with pytest.raises(InputError, match="authority's certificate has expired"):
        authority.client_certificate(certificate_request(p256(), "north"), "north", 365, end)


def test_nothing_of_a_request_but_its_key_is_copied() -> None:
    key = p256()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "north")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("coordinator.example")]), False)
    request = builder.sign(key, SHA256()).public_bytes(serialization.Encoding.PEM).decode()
    certificate = read_certificate(new_authority().client_certificate(request, "north", 1, NOW))
    assert not certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert names_of(certificate) == []


def foreign_request(claimed: ec.EllipticCurvePublicKey) -> str:
    """A request for somebody else's key: the victim's public key put into one's own signed request."""
    own = p256()
    der = x509.load_pem_x509_csr(certificate_request(own, "north").encode()).public_bytes(serialization.Encoding.DER)
    point = [
        key.public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint) for key in (own.public_key(), claimed)
    ]
    forged = x509.load_der_x509_csr(der.replace(point[0], point[1]))
    assert forged.public_key() == claimed
    return forged.public_bytes(serialization.Encoding.PEM).decode()


def test_a_request_for_a_foreign_key_does_not_count() -> None:
    with pytest.raises(ProtocolError, match="not signed with the key"):
        checked_request(foreign_request(p256().public_key()), "north")


@pytest.mark.parametrize("names", [["south"], ["North"], ["north "], ["north", "south"], ["south", "north"], []])
def test_a_request_under_another_name_does_not_count(names: list[str]) -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name) for name in names])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(p256(), SHA256())
    with pytest.raises(ProtocolError, match="it names"):
        checked_request(request.public_bytes(serialization.Encoding.PEM).decode(), "north")


def test_the_invited_name_in_another_field_is_another_name() -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "north")])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(p256(), SHA256())
    with pytest.raises(ProtocolError, match="it names"):
        checked_request(request.public_bytes(serialization.Encoding.PEM).decode(), "north")


@pytest.mark.parametrize("key", [ec.generate_private_key(ec.SECP384R1()), ed25519.Ed25519PrivateKey.generate()])
def test_a_key_of_another_kind_is_refused(key: ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "north")])
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else SHA256()
    request = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, algorithm)
    with pytest.raises(ProtocolError, match="P-256"):
        checked_request(request.public_bytes(serialization.Encoding.PEM).decode(), "north")


@pytest.mark.parametrize(
    "text", ["", "north", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n", "\x00" * 4000]
)
def test_what_is_no_request(text: str) -> None:
    with pytest.raises(ProtocolError, match="cannot be read"):
        checked_request(text, "north")


def test_the_authority_opens_with_its_passphrase_only() -> None:
    pem = new_authority_key(PASSPHRASE)
    certificate = Authority.self_signed(read_authority_key(pem, PASSPHRASE), NOW).pem.encode()
    assert b"ENCRYPTED" in pem
    assert Authority.load(certificate, pem, PASSPHRASE).certificate == read_certificate(certificate)
    with pytest.raises(InputError, match="wrong passphrase"):
        Authority.load(certificate, pem, b"correct horse battery")
    with pytest.raises(InputError, match="another authority"):
        Authority.load(new_authority().pem.encode(), pem, PASSPHRASE)


@pytest.mark.parametrize("content", [b"", b"no key", new_authority_key(PASSPHRASE)[:-60]])
def test_a_damaged_key_of_the_authority(content: bytes) -> None:
    with pytest.raises(InputError, match="damaged"):
        read_authority_key(content, PASSPHRASE)


def test_a_key_that_is_not_encrypted_is_not_the_authoritys() -> None:
    plain = ec.generate_private_key(ec.SECP384R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    with pytest.raises(InputError, match="not encrypted"):
        read_authority_key(plain, PASSPHRASE)


def test_text_that_is_no_certificate() -> None:
    with pytest.raises(StorageError, match="not a certificate"):
        read_certificate("-----BEGIN CERTIFICATE-----")


@pytest.mark.parametrize("name", ["", "co ordinator", "a..b", "-a", "*.example", "ü.example", "a" * 64 + ".example", "a/b"])
def test_names_that_no_host_has(name: str) -> None:
    with pytest.raises(InputError, match="neither a host name nor an IP address"):
        new_authority().server_certificate(p256().public_key(), [name], 1, NOW)


def test_names_and_addresses_of_the_server() -> None:
    pem = new_authority().server_certificate(p256().public_key(), ["Coordinator.example", "10.0.0.7", "::1", "10.0.0.7"], 1, NOW)
    assert names_of(read_certificate(pem)) == ["coordinator.example", "10.0.0.7", "::1"]


# ---- handshakes


def write(folder: Path, name: str, certificate: str, key: ec.EllipticCurvePrivateKey) -> Path:
    path = folder / f"{name}.pem"
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path.write_text(certificate + private.decode())
    return path


def context(authority: Authority, own: Path, server_side: bool) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    made.load_verify_locations(cadata=authority.pem)
    made.load_cert_chain(own)
    made.verify_mode = ssl.CERT_REQUIRED
    made.verify_flags |= ssl.VERIFY_X509_STRICT
    return made


def handshake(server: ssl.SSLContext, client: ssl.SSLContext, host: str) -> bytes | None:
    """Both ends in memory; the client's certificate as the server has it. Raises SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    there = server.wrap_bio(to_server, to_client, server_side=True)
    here = client.wrap_bio(to_client, to_server, server_hostname=host)
    open_ends = [here, there]
    while open_ends:
        for end in tuple(open_ends):
            try:
                end.do_handshake()
                open_ends.remove(end)
            except ssl.SSLWantReadError:
                continue
    return there.getpeercert(binary_form=True)


def ends(folder: Path, authority: Authority, days: int = 1, now: float | None = None) -> tuple[Path, Path]:
    """A server's and a site's certificate with keys."""
    server_key, site_key, moment = p256(), p256(), time.time() if now is None else now
    server = authority.server_certificate(server_key.public_key(), ["coordinator.example", "127.0.0.1"], days, moment)
    site = authority.client_certificate(certificate_request(site_key, "north"), "north", days, moment)
    return write(folder, "server", server, server_key), write(folder, "site", site, site_key)


def test_a_site_and_the_coordinator_shake_hands(tmp_path: Path, live: Authority) -> None:
    server, site = ends(tmp_path, live)
    for host in ("coordinator.example", "127.0.0.1"):
        der = handshake(context(live, server, True), context(live, site, False), host)
        assert der == to_der(site.read_text())


def test_a_site_cannot_pose_as_the_coordinator(tmp_path: Path, live: Authority) -> None:
    _, site = ends(tmp_path, live)
    lax = context(live, site, False)
    lax.check_hostname = False
    with pytest.raises(ssl.SSLCertVerificationError, match="unsuitable certificate purpose"):
        handshake(context(live, site, True), lax, "coordinator.example")


def test_the_server_certificate_is_no_sites(tmp_path: Path, live: Authority) -> None:
    server, _ = ends(tmp_path, live)
    with pytest.raises(ssl.SSLError, match="unsuitable certificate purpose"):
        handshake(context(live, server, True), context(live, server, False), "coordinator.example")


def test_another_host_is_refused(tmp_path: Path, live: Authority) -> None:
    server, site = ends(tmp_path, live)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        handshake(context(live, server, True), context(live, site, False), "elsewhere.example")


def test_another_authority_with_the_same_name_is_refused(tmp_path: Path, live: Authority) -> None:
    other = new_authority(time.time())
    (tmp_path / "other").mkdir()
    server, site = ends(tmp_path, live)
    _, stranger = ends(tmp_path / "other", other)
    strange = context(live, stranger, False)
    with pytest.raises(ssl.SSLError):
        handshake(context(live, server, True), strange, "coordinator.example")
    assert handshake(context(live, server, True), context(live, site, False), "coordinator.example")


def test_a_certificate_that_is_over_is_refused(tmp_path: Path, live: Authority) -> None:
    server, _ = ends(tmp_path, live)
    (tmp_path / "old").mkdir()
    _, old = ends(tmp_path / "old", live, now=time.time() - 2 * DAY_SECONDS)
    with pytest.raises(ssl.SSLError, match="expired"):
        handshake(context(live, server, True), context(live, old, False), "coordinator.example")
