# SPDX-License-Identifier: Apache-2.0
"""How a hospital joins: what the two ends exchange, and the twelve words that both read to each other by phone.

    coordinator  Invitation      a file: where to go, whom to trust, a token for one request. No private key, and it grants nothing
    site         EnrolRequest    four public keys, each shown to be owned, and a certificate request
    both         twelve words    128 bits of SHA-256 over the CA's certificate, the study-signing key and the four public keys
    coordinator  EnrolAnswer     waiting, or the certificate

The same request again is answered again (a site asks until it is approved); another request with a used token is refused.
"""

from __future__ import annotations

import hashlib
import json
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from common.errors import InputError
from common.federation import DIGEST, NAME

CODE_BYTES = 16
MAX_REQUEST_BYTES = 16 * 1024


class Plain(BaseModel):
    """Base of what crosses the wire unsigned: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Invitation(Plain):
    """`invitation.json`. `expires` in seconds since the epoch; `ca_certificate` in PEM."""

    site: str = Field(pattern=NAME)
    url: str = Field(pattern="^https://[^/?#]+$")
    ca_certificate: str = Field(max_length=8192)
    study_key: str = Field(pattern=DIGEST)
    token: str = Field(pattern="^[0-9a-f]{64}$")
    expires: float

    @classmethod
    def read(cls, text: str, where: str) -> Invitation:
        """Raises InputError naming the file."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            fields = ", ".join(sorted({str(part["loc"][0]) if part["loc"] else "file" for part in error.errors()}))
            raise InputError(f"{where}: not an invitation ({fields}); ask the coordinator for a new one") from error


class SitePublicKeys(Plain):
    """A site's four public keys: `node` (EC P-384) and `tls` (EC P-256) as PEM, `signing` (Ed25519) and `exchange` (X25519) as hex."""

    node: str = Field(max_length=1024)
    tls: str = Field(max_length=1024)
    signing: str = Field(pattern=DIGEST)
    exchange: str = Field(pattern=DIGEST)

    def canonical_json(self) -> str:
        """The keys as one line, for digests and signatures."""
        return json.dumps(self.model_dump(), sort_keys=True, separators=(",", ":"))


class EnrolRequest(Plain):
    """`POST /v1/wardround/enrol`. `certificate_request` is a PKCS#10 request (PEM) signed with the TLS key.

    `node_proof` (ECDSA, hexadecimal DER) and `signing_proof` (Ed25519) sign `proof_message`: they show that the keys are owned.
    """

    site: str = Field(pattern=NAME)
    token: str = Field(pattern="^[0-9a-f]{64}$")
    keys: SitePublicKeys
    certificate_request: str = Field(max_length=4096)
    node_proof: str = Field(pattern="^[0-9a-f]{2,400}$")
    signing_proof: str = Field(pattern="^[0-9a-f]{128}$")


class EnrolAnswer(Plain):
    """`waiting` until the coordinator has approved; then the certificate (PEM)."""

    status: Literal["waiting", "approved"]
    certificate: str | None = None


class RenewRequest(Plain):
    """`POST /v1/wardround/renew`. `signing_proof` (Ed25519 over `renewal_message`) is needed only when the TLS key is a new one."""

    certificate_request: str = Field(max_length=4096)
    signing_proof: str | None = Field(None, pattern="^[0-9a-f]{128}$")


def renewal_message(site: str, certificate_request: str) -> bytes:
    """What a site signs to change its TLS key: whoever has only the old TLS key cannot."""
    return f"wardround renewal 1\n{site}\n{certificate_request}".encode()


def proof_message(token: str, keys: SitePublicKeys) -> bytes:
    """What the owner of the keys signs."""
    return f"wardround enrolment 1\n{token}\n{keys.canonical_json()}".encode()


def confirmation_digest(ca_certificate_der: bytes, study_key: str, keys: SitePublicKeys) -> bytes:
    """The 16 bytes that become the twelve words (`common.crypto.words`). Each part is preceded by its length."""
    digest = hashlib.sha256(b"wardround confirmation code 1\n")
    for part in (
        ca_certificate_der,
        study_key.encode(),
        *(getattr(keys, name).encode() for name in ("node", "tls", "signing", "exchange")),
    ):
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()[:CODE_BYTES]
