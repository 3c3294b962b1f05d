# SPDX-License-Identifier: Apache-2.0
"""A site's folder as `init` and an approval leave it, without a coordinator: the authority is real, and the test's own."""

import time
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from client.enrol import prepare
from client.site_home import SiteHome
from common.crypto.certificates import Authority
from common.crypto.private_files import replace_private
from common.crypto.site_keys import SiteKeys
from common.enrolment import Invitation

NOW = time.time()


def new_authority() -> Authority:
    return Authority.self_signed(ec.generate_private_key(ec.SECP384R1()), NOW)


def invitation_to(authority: Authority, url: str, site: str = "north", **changes: object) -> Invitation:
    facts = {"site": site, "url": url, "ca_certificate": authority.pem, "study_key": "5" * 64, "token": "7" * 64, "expires": NOW + 3600}
    return Invitation.model_validate(facts | changes)


def prepared(folder: Path, authority: Authority, url: str, site: str = "north") -> SiteHome:
    home = SiteHome(folder / site)
    prepare(home, invitation_to(authority, url, site), NOW)
    return home


def certified(home: SiteHome, authority: Authority, name: str = "north", *, days: int = 90, now: float = NOW) -> SiteHome:
    """Give the site a certificate from `authority`."""
    request = SiteKeys.read(home.folder).certificate_request(name)
    replace_private(home.certificate, authority.client_certificate(request, name, days, now).encode())
    return home
