# SPDX-License-Identifier: Apache-2.0
"""How this site joins: its keys and request, the twelve words, its certificate, and the next certificate before that one ends.

    prepare             folder, keys, authority, policy file: from the invitation; whatever is there already stays
    send_request        the request; sent again it is answered again, until the coordinator has approved
    confirm             the words as the coordinator read them out; before that the daemon does not start
    fetch_certificate   the same request again; what comes is checked before it is written
    renew               a new certificate on the same TLS key, 30 days before the end

No private key leaves. A crash anywhere leaves nothing that the same call again does not complete.
"""

from __future__ import annotations

from pathlib import Path

from cryptography import x509
from pydantic import ValidationError

from client.coordinator import Coordinator
from client.own_certificate import certificate_problem, check_certificate, read_own
from client.site_config import SiteConfig, template
from client.site_home import SiteHome
from common.crypto.certificates import DAY_SECONDS, not_after, to_der
from common.crypto.private_files import private_folder, replace_private, write_new
from common.crypto.site_keys import SiteKeys
from common.crypto.words import same_words, to_words
from common.enrolment import EnrolAnswer, Invitation, Plain, confirmation_digest
from common.errors import InputError, StorageError

RENEW_BEFORE_DAYS = 30.0


class EnrolmentState(Plain):
    """`enrolment.json`. `confirmed` is the digest of the twelve words that were compared; other keys or another authority undo it.

    `renewal_request` is the certificate request (PEM) that waits for an answer.
    """

    confirmed: str | None = None
    renewal_request: str | None = None

    @classmethod
    def read(cls, home: SiteHome) -> EnrolmentState:
        """The state; empty when nothing was written yet. Raises StorageError."""
        try:
            return cls.model_validate_json(home.enrolment.read_text(encoding="utf-8")) if home.enrolment.exists() else cls()
        except (OSError, ValidationError) as error:
            raise StorageError(
                f"{home.enrolment}: damaged; delete it, and compare the twelve words again with `wardround-client start`"
            ) from error

    def write(self, home: SiteHome) -> None:
        """Write it durably."""
        replace_private(home.enrolment, self.model_dump_json().encode())


def read_invitation_file(path: Path) -> Invitation:
    """The coordinator's file. Raises InputError."""
    try:
        with path.open("rb") as file:
            return Invitation.read(file.read(1 << 16).decode(errors="replace"), str(path))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); name the file that the coordinator sent") from error


def prepare(home: SiteHome, invitation: Invitation, now: float) -> SiteKeys:
    """Make the site's folder, or complete it. Keys and `site.yaml` that are there stay as they are.

    Raises InputError: an invitation that has expired, or one of another federation or for another name than this folder's.
    """
    _check_folder(home)
    changed = _is_new(home, invitation)
    if changed and invitation.expires <= now:
        raise InputError(
            f"the invitation expired {(now - invitation.expires) / 3600:,.1f} hours ago; ask the coordinator for a new one "
            f"(`wardround-server invite {invitation.site}`), and check this machine's clock"
        )
    private_folder(home.folder)
    keys = SiteKeys.ensure(home.folder)
    replace_private(home.ca_certificate, invitation.ca_certificate.encode())
    if changed:
        replace_private(home.invitation, invitation.model_dump_json(indent=1).encode())
    write_new(home.config, template(invitation.site, invitation.url).encode())
    if changed:
        _check_url(home, invitation)
    return keys


def _check_folder(home: SiteHome) -> None:
    """A folder with other things in it is not filled with keys by mistake."""
    is_ours = home.invitation.exists() or home.config.exists() or home.key.exists()
    if not is_ours and home.folder.is_dir() and any(home.folder.iterdir()):
        raise InputError(f"{home.folder}: not empty, and not a site's folder; name a new or empty one with --home DIR")


def _check_url(home: SiteHome, invitation: Invitation) -> None:
    """The line in `site.yaml` is what counts, and it is never written over."""
    url = SiteConfig.read(home.config).coordinator
    if url != invitation.url:
        raise InputError(
            f"{home.config}: coordinator is {url}, the invitation says {invitation.url}; correct the line in {home.config.name}"
        )


def _is_new(home: SiteHome, invitation: Invitation) -> bool:
    """Whether the folder has another invitation than this, or none. Raises InputError when the two do not go together."""
    to_der(invitation.ca_certificate)
    if not home.invitation.exists():
        return True
    known = home.read_invitation()
    names = ("site", "ca_certificate", "study_key")
    different = [name for name in names if getattr(known, name) != getattr(invitation, name)]
    if different:
        raise InputError(
            f"{home.folder}: already belongs to site {known.site} of {known.url}, and this invitation differs from that in "
            f"{', '.join(different)}; for another federation take a folder of its own (--home DIR)"
        )
    return known != invitation


def confirmation_digest_of(home: SiteHome) -> bytes:
    """The 16 bytes that both ends have to see: authority, study-signing key and this site's four public keys."""
    invitation = home.read_invitation()
    return confirmation_digest(to_der(invitation.ca_certificate), invitation.study_key, SiteKeys.read(home.folder).public())


def confirmation_words(home: SiteHome) -> str:
    """The twelve words of this site's screen."""
    return to_words(confirmation_digest_of(home))


def is_confirmed(home: SiteHome) -> bool:
    """Whether the words were compared for exactly these keys."""
    return EnrolmentState.read(home).confirmed == confirmation_digest_of(home).hex()


def confirm(home: SiteHome, words: str) -> None:
    """Compare the words that the coordinator read out with this site's own. Raises InputError when they differ."""
    digest = confirmation_digest_of(home)
    if not same_words(words, digest):
        raise InputError(
            "these are not the twelve words of this site: either they were misread, or somebody between you and the coordinator changed "
            "the invitation or the request. Call the coordinator on a number that you know, and read both sides again; do not go on before"
        )
    EnrolmentState.read(home).model_copy(update={"confirmed": digest.hex()}).write(home)


def send_request(home: SiteHome, coordinator: Coordinator, now: float) -> EnrolAnswer:
    """Send the request, or ask how it stands; a certificate that comes is checked and written.

    Raises CoordinatorUnreachable, CoordinatorRefused, ProtocolError (a certificate that is not for this site).
    """
    answer = coordinator.enrol(SiteKeys.read(home.folder).request(home.read_invitation()))
    if answer.certificate is not None:
        _keep(home, answer.certificate, now)
    return answer


def fetch_certificate(home: SiteHome, coordinator: Coordinator, now: float) -> bool:
    """Whether the site has its certificate now; asks for it while it has none that is valid."""
    return _usable(home, now) is not None or send_request(home, coordinator, now).status == "approved"


def is_renewal_due(home: SiteHome, now: float, renew_before_days: float = RENEW_BEFORE_DAYS) -> bool:
    """Whether the certificate ends within so many days (in its last third, if it is a short one)."""
    own = read_own(home)
    if own is None:
        return False
    whole = not_after(own) - own.not_valid_before_utc.timestamp()
    return not_after(own) - now <= min(renew_before_days * DAY_SECONDS, whole / 3)


def renew(home: SiteHome, coordinator: Coordinator, now: float, renew_before_days: float = RENEW_BEFORE_DAYS) -> bool:
    """Ask for the next certificate if it is time; whether a new one was written. Cheap to call often.

    Until the coordinator has run `wardround-server sites renew` the same request is sent again. The TLS key stays. After True make a new
    `Coordinator` and a new `tls_context`; connections that are open keep the old certificate. One that has ended already lets nobody in:
    then the enrolment is asked, which needs none.
    """
    if not is_renewal_due(home, now, renew_before_days):
        return False
    own = read_own(home)
    if own is None or not_after(own) <= now:
        return send_request(home, coordinator, now).status == "approved"
    state = EnrolmentState.read(home)
    if state.renewal_request is None:
        state = state.model_copy(update={"renewal_request": _new_request(home)})
        state.write(home)
    answer = coordinator.renew(str(state.renewal_request))
    if answer.certificate is None:
        return False
    written = _keep(home, answer.certificate, now)
    state.model_copy(update={"renewal_request": None}).write(home)
    return written


def _new_request(home: SiteHome) -> str:
    return SiteKeys.read(home.folder).certificate_request(home.read_invitation().site)


def _keep(home: SiteHome, pem: str, now: float) -> bool:
    """Write a certificate that passes every check, unless the one that is there lasts longer."""
    certificate = check_certificate(home, pem, now)
    own = _usable(home, now)
    if own is not None and not_after(own) >= not_after(certificate):
        return False
    replace_private(home.certificate, pem.encode())
    return True


def _usable(home: SiteHome, now: float) -> x509.Certificate | None:
    """The site's certificate, if it is good for these keys and now."""
    own = read_own(home)
    return own if own is not None and certificate_problem(home, own, now) is None else None
