# SPDX-License-Identifier: Apache-2.0
"""Decisions that only the owner of the authority's key can make: admit a site, renew its certificate.

The key is encrypted with a passphrase and may be kept on a stick or on another machine; nothing that runs all day needs it. What a site is
called by in its certificate is the name it was invited under.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

from common.crypto.certificates import Authority, checked_request, to_der
from common.crypto.private_files import read_private
from common.crypto.site_keys import public_pem
from common.crypto.words import same_words, to_words
from common.enrolment import confirmation_digest
from common.errors import FederationError, InputError, ProtocolError, RefusedError, StorageError
from server.home import ServerHome
from server.sites import APPROVED, REQUESTED, RegisteredSite, SiteRegistry
from server.state import State


def registry(home: ServerHome) -> SiteRegistry:
    """The sites of this coordinator."""
    return SiteRegistry(State(home.state))


def load_authority(home: ServerHome, passphrase: bytes, key_file: Path | None = None) -> Authority:
    """The authority of `home`; its key is in `key_file`, else in the folder. Raises InputError, StorageError."""
    path = key_file or home.ca_key
    if not path.exists():
        raise InputError(f"{path}: no key of the authority here; if it is kept elsewhere, give --ca-key FILE")
    return Authority.load(_read(home.ca_certificate), read_private(path), passphrase)


def study_key(home: ServerHome) -> str:
    """The public study-signing key, hexadecimal. Raises StorageError."""
    text = _read(home.study_public_key).decode("ascii", "replace").strip()
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise StorageError(f"{home.study_public_key}: not a key of 32 bytes in hexadecimal; restore it from its backup")
    return text


def code_of(home: ServerHome, site: RegisteredSite) -> str:
    """The twelve words that the site sees too, if nobody stands between."""
    return to_words(_digest(home, site))


def confirm(home: ServerHome, site: RegisteredSite, words: str) -> None:
    """Check the words that the site's people read out. Raises RefusedError for those of another request, InputError for a slip."""
    if not same_words(words, _digest(home, site)):
        raise RefusedError(
            "CODE_DIFFERS",
            f"these are not the words of {site.name}'s request, so the keys that came here may not be theirs; read them out again, and if "
            f"they still differ do not approve: `wardround-server sites revoke {site.name}`, then invite again over a channel you trust",
        )


def admit(home: ServerHome, site: RegisteredSite, authority: Authority, now: float | None = None) -> RegisteredSite:
    """Approve exactly the request in `site` and issue its certificate. Raises RefusedError when it changed or is not waiting."""
    if site.status != REQUESTED:
        raise RefusedError("SITE_NOT_WAITING", f"{site.name} is {site.status}; only a request that waits can be approved")
    moment = time.time() if now is None else now
    days = home.settings.certificate_days
    certificate = authority.client_certificate(site.certificate_request, site.name, days, moment)
    return registry(home).approve(site, certificate, moment)


def renew(home: ServerHome, site: RegisteredSite, authority: Authority, now: float | None = None) -> RegisteredSite:
    """A new certificate for what the site last asked for: its renewal request, else (it expired, or was lost) the one before."""
    if site.status != APPROVED:
        raise RefusedError("SITE_NOT_APPROVED", f"{site.name} is {site.status}, so it has no certificate to renew")
    moment = time.time() if now is None else now
    request = site.renewal_request or site.certificate_request
    certificate = authority.client_certificate(request, site.name, home.settings.certificate_days, moment)
    return registry(home).renew(site, request, public_pem(checked_request(request, site.name)), certificate, moment)


def register_node(home: ServerHome, site: RegisteredSite) -> int | None:
    """Make the site's node known to Flower; None when no SuperLink runs (it is done when one starts)."""
    from common.flower_compat import control

    try:
        node_id = control.register_node(home, site.node_key, site.name)
    except control.NotRunning:
        return None
    registry(home).set_node_id(site.name, node_id)
    return node_id


def unregister_node(home: ServerHome, site: RegisteredSite) -> bool:
    """Take the site's node off Flower's list; False when that was not possible now. The gateway refuses the site in either case."""
    from common.flower_compat import control

    if site.node_id is None:
        return True
    try:
        control.unregister_node(home, site.node_id)
    except (FederationError, ProtocolError):
        return False
    registry(home).set_node_id(site.name, None)
    return True


def _digest(home: ServerHome, site: RegisteredSite) -> bytes:
    return confirmation_digest(to_der(_read(home.ca_certificate)), study_key(home), site.keys)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror or error}); restore it from its backup") from error
