# SPDX-License-Identifier: Apache-2.0
"""Who belongs to the federation: invitations, sites, their public keys and certificates. Only this module touches these tables.

    invited --request--> requested --approve--> approved --revoke--> revoked --invite, request--> requested …

A site is welcome while it is approved and shows a certificate of its own that is neither revoked nor over. A revoked site's certificates,
node key and TLS key never count again, not even when the site comes back; its signing and exchange keys may, for the ledger hangs on them.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from typing import Any

from common.crypto.certificates import fingerprint, not_after, to_der
from common.enrolment import EnrolRequest, SitePublicKeys
from common.errors import InputError, RefusedError
from server.invitations import InvitationEntry, usable
from server.state import State

REQUESTED, APPROVED, REVOKED = "requested", "approved", "revoked"
_KEY_COLUMNS = ("node_key", "tls_key", "signing_key", "exchange_key")


@dataclass(frozen=True)
class SiteCertificate:
    """A certificate that was issued to a site; `not_after` in seconds since the epoch."""

    fingerprint: str
    not_after: float
    revoked: bool


@dataclass(frozen=True)
class RegisteredSite:
    """A site as it is registered. `certificate` and both requests are PEM; `certificates` are all it ever had, newest last."""

    name: str
    status: str
    node_key: str
    tls_key: str
    signing_key: str
    exchange_key: str
    node_id: int | None
    certificate_request: str
    certificate: str | None
    renewal_request: str | None
    changed: float
    certificates: tuple[SiteCertificate, ...]

    @property
    def keys(self) -> SitePublicKeys:
        """The four public keys."""
        return SitePublicKeys(node=self.node_key, tls=self.tls_key, signing=self.signing_key, exchange=self.exchange_key)

    @property
    def not_after(self) -> float | None:
        """When its last certificate ends."""
        return max((one.not_after for one in self.certificates if not one.revoked), default=None)


class SiteRegistry:
    """The sites in `state`. Every method is one transaction; names that are not there raise InputError."""

    def __init__(self, state: State) -> None:
        self._state = state

    def invite(self, name: str, token_sha256: str, expires: float) -> None:
        """Note an invitation; older ones of the same name end. Raises RefusedError for an approved site, InputError for a twin name."""
        with self._state.writing() as database:
            for (other,) in database.execute("SELECT name FROM site UNION SELECT site FROM invitation").fetchall():
                if other != name and other.casefold() == name.casefold():
                    raise InputError(f"{name}: there is {other} already; names that differ only in case are confused on the phone")
            site = _by_name(database, name)
            if site is not None and site.status == APPROVED:
                raise RefusedError(
                    "SITE_APPROVED", f"{name} is enrolled; if its keys are lost, run `wardround-server sites revoke {name}` first"
                )
            database.execute("DELETE FROM invitation WHERE site = ?", (name,))
            database.execute("INSERT INTO invitation VALUES (?, ?, ?, NULL)", (name, token_sha256, expires))

    def invitation(self, token_sha256: str) -> InvitationEntry | None:
        """The invitation with this token, if there is one."""
        with self._state.reading() as database:
            row = database.execute("SELECT * FROM invitation WHERE token_sha256 = ?", (token_sha256,)).fetchone()
        return None if row is None else InvitationEntry(**row)

    def open_invitations(self) -> list[InvitationEntry]:
        """Invitations that no request has used yet."""
        with self._state.reading() as database:
            rows = database.execute("SELECT * FROM invitation WHERE request_sha256 IS NULL ORDER BY site").fetchall()
        return [InvitationEntry(**row) for row in rows]

    def request(self, request: EnrolRequest, token_sha256: str, request_sha256: str, now: float) -> RegisteredSite:
        """Note the request of an invited site, once; the same again changes nothing. The caller has checked its proofs.

        Raises RefusedError: invitation unknown, for another name, over, used by another request; a key that is another site's or retired.
        """
        with self._state.writing() as database:
            row = database.execute("SELECT * FROM invitation WHERE token_sha256 = ?", (token_sha256,)).fetchone()
            entry = usable(None if row is None else InvitationEntry(**row), request.site, request_sha256, now)
            if entry.request_sha256 is None:
                _refuse_used_keys(database, request.site, request.keys)
                database.execute("UPDATE invitation SET request_sha256 = ? WHERE token_sha256 = ?", (request_sha256, token_sha256))
                _put_request(database, request, now)
            return _found(database, request.site)

    def approve(self, site: RegisteredSite, certificate: str, now: float | None = None) -> RegisteredSite:
        """Approve exactly what `site` asked for, with its certificate. Raises RefusedError when the request has changed meanwhile."""
        with self._state.writing() as database:
            current = _found(database, site.name)
            if current.status != REQUESTED or current.keys != site.keys or current.certificate_request != site.certificate_request:
                raise RefusedError("REQUEST_CHANGED", f"{site.name}: its request is another one than a moment ago; look at it again")
            _put_certificate(database, site.name, certificate, site.certificate_request, now)
            database.execute("UPDATE site SET status = ? WHERE name = ?", (APPROVED, site.name))
            return _found(database, site.name)

    def ask_renewal(self, name: str, request_pem: str, tls_key: str, now: float | None = None) -> None:
        """Note that an approved site asks for a new certificate on `tls_key`. The caller has checked the request.

        Raises RefusedError for a site that is not approved, or a key that is another site's or retired.
        """
        with self._state.writing() as database:
            site = _found(database, name)
            _must_be_approved(site)
            _refuse_used_keys(database, name, site.keys.model_copy(update={"tls": tls_key}))
            database.execute("UPDATE site SET renewal_request = ?, changed = ? WHERE name = ?", (request_pem, _time(now), name))

    def renew(self, site: RegisteredSite, request_pem: str, tls_key: str, certificate: str, now: float | None = None) -> RegisteredSite:
        """Note the new certificate that answers `request_pem`; the old one stays good until its end, so that nothing is interrupted."""
        with self._state.writing() as database:
            current = _found(database, site.name)
            _must_be_approved(current)
            if request_pem not in (current.renewal_request, current.certificate_request) or current.signing_key != site.signing_key:
                raise RefusedError("REQUEST_CHANGED", f"{site.name}: its request is another one than a moment ago; look at it again")
            _put_certificate(database, site.name, certificate, request_pem, now)
            database.execute("UPDATE site SET tls_key = ?, renewal_request = NULL WHERE name = ?", (tls_key, site.name))
            return _found(database, site.name)

    def revoke(self, name: str, now: float | None = None) -> RegisteredSite | None:
        """From now on nothing that the site shows is good, its open invitations neither. Returns None if it was only invited.

        Revoking again changes nothing.
        """
        with self._state.writing() as database:
            site = _by_name(database, name)
            withdrawn = database.execute("DELETE FROM invitation WHERE site = ? AND request_sha256 IS NULL", (name,)).rowcount
            if site is None:
                if not withdrawn:
                    raise _unknown(database, name)
                return None
            database.execute("UPDATE site_certificate SET revoked = 1 WHERE site = ?", (name,))
            database.executemany("INSERT OR IGNORE INTO retired_key VALUES (?, ?)", [(site.node_key, name), (site.tls_key, name)])
            database.execute(
                "UPDATE site SET status = ?, renewal_request = NULL, changed = ? WHERE name = ? AND status <> ?",
                (REVOKED, _time(now), name, REVOKED),
            )
            return _found(database, name)

    def set_node_id(self, name: str, node_id: int | None) -> None:
        """Note the id (64 bits, unsigned) under which Flower knows the site's node key; None when Flower knows it no more."""
        stored = None if node_id is None else str(node_id)  # SQLite's integers have a sign
        with self._state.writing() as database:
            _found(database, name)
            database.execute("UPDATE site SET node_id = ? WHERE name = ?", (stored, name))

    def all(self) -> list[RegisteredSite]:
        """Every site, by name."""
        with self._state.reading() as database:
            return [_site(database, row) for row in database.execute("SELECT * FROM site ORDER BY name").fetchall()]

    def by_name(self, name: str) -> RegisteredSite:
        """Raises InputError naming the sites that there are."""
        with self._state.reading() as database:
            return _found(database, name)

    def by_fingerprint(self, fingerprint: str) -> RegisteredSite | None:
        """The site to which the certificate was issued, whatever has become of it since."""
        with self._state.reading() as database:
            row = database.execute(
                "SELECT site.* FROM site JOIN site_certificate ON site = name WHERE fingerprint = ?", (fingerprint,)
            ).fetchone()
            return None if row is None else _site(database, row)

    def is_welcome(self, fingerprint: str, now: float) -> RegisteredSite | None:
        """The site, if it is approved and this certificate is known, not revoked and not over; else None."""
        site = self.by_fingerprint(fingerprint)
        return None if site is None or _unwelcome(site, fingerprint, now) else site

    def why_not(self, fingerprint: str, now: float) -> str | None:
        """Why the owner of this certificate is not welcome, and what to do; None when it is."""
        site = self.by_fingerprint(fingerprint)
        return "this certificate is not known here; enrol with an invitation" if site is None else _unwelcome(site, fingerprint, now)


def _unwelcome(site: RegisteredSite, fingerprint: str, now: float) -> str | None:
    shown = next((one for one in site.certificates if one.fingerprint == fingerprint), None)
    if site.status == REVOKED or shown is None or shown.revoked:
        return f"this certificate of {site.name} was revoked; to come back, ask the coordinator for a new invitation"
    if site.status != APPROVED:
        return f"{site.name} is not approved"
    if shown.not_after <= now:
        return f"this certificate of {site.name} has expired; ask the coordinator to run `wardround-server sites renew {site.name}`"
    return None


def _must_be_approved(site: RegisteredSite) -> None:
    if site.status != APPROVED:
        raise RefusedError("SITE_NOT_APPROVED", f"{site.name} is {site.status}, so it has no certificate to renew")


def _refuse_used_keys(database: sqlite3.Connection, name: str, keys: SitePublicKeys) -> None:
    """Keys of another site, and node and TLS keys that were revoked, are used up."""
    given = (keys.node, keys.tls, keys.signing, keys.exchange)
    marks = ", ".join("?" * len(given))
    columns = " OR ".join(f"{column} IN ({marks})" for column in _KEY_COLUMNS)
    if database.execute(f"SELECT 1 FROM site WHERE name <> ? AND ({columns})", (name, *given * len(_KEY_COLUMNS))).fetchone():
        raise RefusedError("KEYS_IN_USE", "one of these keys belongs to another site; every site makes keys of its own in an own folder")
    if database.execute(f"SELECT 1 FROM retired_key WHERE key IN ({marks})", given).fetchone():
        raise RefusedError(
            "KEYS_REVOKED",
            "the node or the TLS key was revoked; move node.pem and tls.pem away (never site.key) and run `wardround-client init` again",
        )


def _put_request(database: sqlite3.Connection, request: EnrolRequest, now: float) -> None:
    keys = request.keys
    values = (request.site, REQUESTED, keys.node, keys.tls, keys.signing, keys.exchange, request.certificate_request, now)
    database.execute(
        "INSERT INTO site (name, status, node_key, tls_key, signing_key, exchange_key, certificate_request, changed)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET status = excluded.status, node_key = excluded.node_key,"
        " tls_key = excluded.tls_key, signing_key = excluded.signing_key, exchange_key = excluded.exchange_key,"
        " certificate_request = excluded.certificate_request, certificate = NULL, node_id = NULL, renewal_request = NULL,"
        " changed = excluded.changed",
        values,
    )


def _put_certificate(database: sqlite3.Connection, name: str, certificate: str, request_pem: str, now: float | None) -> None:
    database.execute("INSERT INTO site_certificate VALUES (?, ?, ?, 0)", (fingerprint(to_der(certificate)), name, not_after(certificate)))
    database.execute(
        "UPDATE site SET certificate = ?, certificate_request = ?, changed = ? WHERE name = ?", (certificate, request_pem, _time(now), name)
    )


def _by_name(database: sqlite3.Connection, name: str) -> RegisteredSite | None:
    row = database.execute("SELECT * FROM site WHERE name = ?", (name,)).fetchone()
    return None if row is None else _site(database, row)


def _found(database: sqlite3.Connection, name: str) -> RegisteredSite:
    site = _by_name(database, name)
    if site is None:
        raise _unknown(database, name)
    return site


def _unknown(database: sqlite3.Connection, name: str) -> InputError:
    known = [row["name"] for row in database.execute("SELECT name FROM site ORDER BY name").fetchall()]
    invited = database.execute("SELECT 1 FROM invitation WHERE site = ?", (name,)).fetchone()
    hint = "it is invited and has not sent its request yet" if invited else f"there are: {', '.join(known) or 'none'}"
    return InputError(f"{name}: no such site; {hint}")


def _site(database: sqlite3.Connection, row: sqlite3.Row) -> RegisteredSite:
    issued = database.execute("SELECT * FROM site_certificate WHERE site = ? ORDER BY rowid", (row["name"],)).fetchall()
    certificates = tuple(SiteCertificate(one["fingerprint"], one["not_after"], bool(one["revoked"])) for one in issued)
    columns: dict[str, Any] = dict(zip(row.keys(), row, strict=True))
    if columns["node_id"] is not None:
        columns["node_id"] = int(columns["node_id"])
    return RegisteredSite(**columns, certificates=certificates)


def _time(now: float | None) -> float:
    return time.time() if now is None else now
