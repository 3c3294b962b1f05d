# SPDX-License-Identifier: Apache-2.0
"""A site's two calls about itself: `enrol` (with the invitation's token, before it has a certificate) and `renew` (with its certificate).

Both only note a request and say how it stands. The authority's key is not here: a person compares the twelve words and approves, with
`wardround-server sites approve` and `sites renew`. A token is good for one set of keys; asking again with the same keys is answered again.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import time
from typing import Any, TypeVar

from pydantic import ValidationError

from common.crypto.certificates import checked_request
from common.crypto.signatures import is_signed
from common.crypto.site_keys import check_request, public_pem
from common.enrolment import MAX_REQUEST_BYTES, EnrolAnswer, EnrolRequest, Invitation, Plain, RenewRequest, renewal_message
from common.errors import InputError, ProtocolError, RefusedError
from common.federation import NAME
from server.authority import registry, study_key
from server.home import ServerHome
from server.invitations import usable
from server.sites import APPROVED, REVOKED, RegisteredSite

TOKEN_BYTES = 32
MAX_VALID_HOURS = 24 * 30
_Body = TypeVar("_Body", bound=Plain)


def invite(home: ServerHome, name: str, valid_hours: float, now: float | None = None) -> Invitation:
    """A new invitation for the site `name`; older ones end. Raises InputError, RefusedError. Only a digest of the token is kept."""
    if not 0 < valid_hours <= MAX_VALID_HOURS:
        raise InputError(f"--valid-hours: has to be above 0 and at most {MAX_VALID_HOURS}, not {valid_hours:g}")
    expires = _time(now) + valid_hours * 3600
    try:
        invitation = Invitation(
            site=name,
            url=home.settings.url,
            ca_certificate=home.ca_certificate.read_text(encoding="ascii"),
            study_key=study_key(home),
            token=secrets.token_hex(TOKEN_BYTES),
            expires=expires,
        )
    except ValidationError as error:
        raise InputError(f"{name[:80]}: not a name for a site; it has to fit {NAME}") from error
    registry(home).invite(name, token_digest(invitation.token), expires)
    return invitation


def enrol(home: ServerHome, body: bytes, now: float | None = None) -> dict[str, Any]:
    """Note a site's request, or say how it stands: an `EnrolAnswer`.

    Raises ProtocolError (malformed, a proof that fails, another name in the certificate request), RefusedError (the invitation is unknown,
    expired, for another name, used with other keys; keys in use elsewhere or revoked; the site was revoked).
    """
    request, moment, sites = _parsed(EnrolRequest, body), _time(now), registry(home)
    token, digest = token_digest(request.token), request_digest(request)
    usable(sites.invitation(token), request.site, digest, moment)  # before the costly proofs; again, in the transaction, below
    check_request(request)
    site = sites.request(request, token, digest, moment)
    if site.status == REVOKED:
        raise RefusedError("SITE_REVOKED", f"{site.name} was revoked; to come back, ask the coordinator for a new invitation")
    return _answer(site.certificate if site.status == APPROVED else None)


def renew(home: ServerHome, site: RegisteredSite, body: bytes, now: float | None = None) -> dict[str, Any]:
    """Note that `site` asks for a new certificate, or hand out the one that answers exactly this request.

    Raises ProtocolError for a request that is malformed, not signed with its key, or names another site; RefusedError for a site that is
    not approved, and for a new TLS key without the proof of the signing key.
    """
    request, sites = _parsed(RenewRequest, body), registry(home)
    tls_key = public_pem(checked_request(request.certificate_request, site.name))
    current = sites.by_name(site.name)
    if current.status == APPROVED and request.certificate_request == current.certificate_request:
        return _answer(current.certificate)
    if tls_key != current.tls_key:
        _check_new_key(current, request)
    if request.certificate_request != current.renewal_request:
        sites.ask_renewal(site.name, request.certificate_request, tls_key, _time(now))
    return _answer(None)


def token_digest(token: str) -> str:
    """What is kept of a token: whoever reads the database cannot use it."""
    return hashlib.sha256(token.encode()).hexdigest()


def request_digest(request: EnrolRequest) -> str:
    """What makes two requests the same: token, name and the four keys. Proofs are random and prove the same each time."""
    return hashlib.sha256(json.dumps([request.token, request.site, request.keys.canonical_json()]).encode()).hexdigest()


def _check_new_key(site: RegisteredSite, request: RenewRequest) -> None:
    message = renewal_message(site.name, request.certificate_request)
    if request.signing_proof is None or not is_signed(site.signing_key, message, request.signing_proof):
        raise RefusedError(
            "RENEWAL_KEY", f"a new TLS key of {site.name} has to be signed with the site's signing key; else keep the old key"
        )


def _answer(certificate: str | None) -> dict[str, Any]:
    return EnrolAnswer(status="approved" if certificate else "waiting", certificate=certificate).model_dump()


def _parsed(kind: type[_Body], body: bytes) -> _Body:
    if len(body) > MAX_REQUEST_BYTES:
        raise ProtocolError(f"the request has {len(body):,} bytes, at most {MAX_REQUEST_BYTES:,} are read")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        fields = sorted({str(part["loc"][0])[:40] if part["loc"] else "body" for part in error.errors(include_input=False)})
        raise ProtocolError(f"the request cannot be read ({', '.join(fields[:10])}); the two ends may differ in version") from error


def _time(now: float | None) -> float:
    return time.time() if now is None else now
