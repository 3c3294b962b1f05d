# SPDX-License-Identifier: Apache-2.0
"""A coordinator's folder and sites that ask to join it, for tests. The clock is given."""

from pathlib import Path

from common.crypto.certificates import Authority, fingerprint, to_der
from common.crypto.site_keys import SiteKeys
from common.enrolment import EnrolRequest, Invitation
from server import authority
from server.enrolment import enrol, invite
from server.founding import KeyHolder, Wanted, found
from server.home import ServerHome
from server.sites import RegisteredSite, SiteRegistry

PASSPHRASE = b"correct horse battery staple"
URL = "https://localhost:8443"
NOW = 1_790_000_000.0
HOUR, DAY = 3600.0, 86400.0


def holder(asked: list[bool] | None = None) -> KeyHolder:
    """Knows the passphrase; notes in `asked` each time whether it was for a new key."""

    def passphrase(new: bool) -> bytes:
        if asked is not None:
            asked.append(new)
        return PASSPHRASE

    return KeyHolder(passphrase)


def founded(folder: Path, now: float = NOW) -> ServerHome:
    """A new coordinator."""
    home = ServerHome(folder)
    found(home, Wanted(URL), holder(), now)
    return home


def opened(home: ServerHome) -> Authority:
    """Its authority."""
    return authority.load_authority(home, PASSPHRASE)


def registry(home: ServerHome) -> SiteRegistry:
    """Its sites."""
    return authority.registry(home)


def invited(home: ServerHome, name: str, now: float = NOW) -> Invitation:
    """An invitation for 72 hours."""
    return invite(home, name, 72, now)


def send(home: ServerHome, request: EnrolRequest, now: float = NOW) -> dict[str, object]:
    """The request as it comes in."""
    return enrol(home, request.model_dump_json().encode(), now)


def joined(home: ServerHome, name: str, keys: SiteKeys, now: float = NOW) -> RegisteredSite:
    """A site that was invited, asked, and was approved."""
    send(home, keys.request(invited(home, name, now)), now)
    return authority.admit(home, registry(home).by_name(name), opened(home), now)


def shown(site: RegisteredSite) -> str:
    """Fingerprint of the certificate that the site shows."""
    assert site.certificate is not None
    return fingerprint(to_der(site.certificate))
