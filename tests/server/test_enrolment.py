# SPDX-License-Identifier: Apache-2.0
"""Joining and renewing, and everything that somebody else may try with what he has."""

import json
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.crypto.certificates import certificate_request, not_after, read_certificate, to_der
from common.crypto.site_keys import SiteKeys
from common.crypto.words import to_words
from common.enrolment import MAX_REQUEST_BYTES, EnrolRequest, confirmation_digest, renewal_message
from common.errors import InputError, ProtocolError, RefusedError, WardroundError
from server import authority
from server.enrolment import enrol, invite, renew
from server.home import ServerHome
from tests.server.coordinator import DAY, HOUR, NOW, founded, invited, joined, opened, registry, send, shown


@pytest.fixture
def home(tmp_path: Path) -> ServerHome:
    return founded(tmp_path / "coordinator")


@pytest.fixture(scope="module")
def north(tmp_path_factory: pytest.TempPathFactory) -> SiteKeys:
    return SiteKeys.ensure(tmp_path_factory.mktemp("north"))


@pytest.fixture(scope="module")
def south(tmp_path_factory: pytest.TempPathFactory) -> SiteKeys:
    return SiteKeys.ensure(tmp_path_factory.mktemp("south"))


def refused(error: pytest.ExceptionInfo[RefusedError]) -> str:
    return error.value.code


def test_a_site_joins(home: ServerHome, north: SiteKeys) -> None:
    invitation = invited(home, "north")
    assert send(home, north.request(invitation)) == {"status": "waiting", "certificate": None}
    site = registry(home).by_name("north")
    assert (site.status, site.keys, site.certificate) == ("requested", north.public(), None)

    approved = authority.admit(home, site, opened(home), NOW)
    answer = send(home, north.request(invitation), NOW + 100 * DAY)
    assert answer == {"status": "approved", "certificate": approved.certificate}
    assert approved.certificate is not None
    certificate = read_certificate(approved.certificate)
    assert certificate.public_key() == north.tls_key.public_key()
    assert approved.not_after == not_after(certificate) == NOW + 365 * DAY
    assert registry(home).is_welcome(shown(approved), NOW) == approved


def test_the_invitation_holds_no_secret_and_its_token_is_not_kept(home: ServerHome) -> None:
    invitation = invited(home, "north")
    assert "PRIVATE" not in invitation.model_dump_json()
    with sqlite3.connect(home.state) as database:
        assert invitation.token not in "\n".join(database.iterdump())
    assert invitation.expires == NOW + 72 * HOUR
    assert invitation.study_key == home.study_public_key.read_text().strip()


@pytest.mark.parametrize("name", ["", "a/b", "../north", "-north", "north site", "n" * 64])
def test_names_that_no_site_may_have(home: ServerHome, name: str) -> None:
    with pytest.raises(InputError, match="not a name for a site"):
        invite(home, name, 72, NOW)


@pytest.mark.parametrize("hours", [0, -1, float("nan"), float("inf"), 721])
def test_hours_that_no_invitation_may_last(home: ServerHome, hours: float) -> None:
    with pytest.raises(InputError, match="--valid-hours"):
        invite(home, "north", hours, NOW)


def test_a_token_with_other_keys_is_refused(home: ServerHome, north: SiteKeys, south: SiteKeys) -> None:
    """Who has read the invitation on its way comes second; who comes first is found by the twelve words."""
    invitation = invited(home, "north")
    send(home, north.request(invitation))
    with pytest.raises(RefusedError, match="by phone") as error:
        send(home, south.request(invitation))
    assert refused(error) == "INVITATION_USED"
    assert registry(home).by_name("north").keys == north.public()


def test_of_two_with_one_token_at_the_same_time_one_gets_in(home: ServerHome, north: SiteKeys, south: SiteKeys) -> None:
    invitation = invited(home, "north")
    requests = [keys.request(invitation) for keys in (north, south) * 4]

    def outcome(request: EnrolRequest) -> str:
        try:
            return str(send(home, request)["status"])
        except RefusedError as error:
            return error.code

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(outcome, requests))
    assert sorted(outcomes) == ["INVITATION_USED"] * 4 + ["waiting"] * 4
    assert outcomes[0] != outcomes[1]


def test_a_token_for_another_name_is_refused(home: ServerHome, north: SiteKeys) -> None:
    invitation = invited(home, "north")
    with pytest.raises(RefusedError, match="another site than south") as error:
        send(home, north.request(invitation.model_copy(update={"site": "south"})))
    assert refused(error) == "INVITATION_NAME"
    assert registry(home).all() == []


def test_a_renamed_certificate_request_is_refused(home: ServerHome, north: SiteKeys) -> None:
    """The form says north, the certificate request inside says admin."""
    request = north.request(invited(home, "north"))
    renamed = request.model_copy(update={"certificate_request": north.certificate_request("admin")})
    with pytest.raises(ProtocolError, match="the invitation is for north"):
        send(home, renamed)
    assert registry(home).all() == []


def test_an_unknown_token_is_refused(home: ServerHome, north: SiteKeys) -> None:
    guessed = invited(home, "north").model_copy(update={"token": "0" * 64})
    with pytest.raises(RefusedError, match="not known") as error:
        send(home, north.request(guessed))
    assert refused(error) == "INVITATION_UNKNOWN"


def test_an_expired_token_is_refused_but_a_request_made_in_time_may_wait(home: ServerHome, north: SiteKeys, south: SiteKeys) -> None:
    first, second = invited(home, "north"), invited(home, "south")
    send(home, north.request(first), NOW + 72 * HOUR - 1)
    with pytest.raises(RefusedError, match="expired") as error:
        send(home, south.request(second), NOW + 72 * HOUR)
    assert refused(error) == "INVITATION_EXPIRED"
    assert send(home, north.request(first), NOW + 1000 * HOUR)["status"] == "waiting"


def test_a_new_invitation_ends_the_old_one(home: ServerHome, north: SiteKeys) -> None:
    old, new = invited(home, "north"), invited(home, "north")
    with pytest.raises(RefusedError, match="replaced"):
        send(home, north.request(old))
    assert send(home, north.request(new))["status"] == "waiting"


def test_a_waiting_request_is_replaced_by_the_one_of_a_new_invitation(home: ServerHome, north: SiteKeys, south: SiteKeys) -> None:
    """Someone else used the first invitation: the words differed, the coordinator invites again."""
    send(home, south.request(invited(home, "north")))
    seen = registry(home).by_name("north")
    send(home, north.request(invited(home, "north")))
    assert registry(home).by_name("north").keys == north.public()
    with pytest.raises(RefusedError, match="another one than a moment ago"):
        authority.admit(home, seen, opened(home), NOW)


@pytest.mark.parametrize("stolen", ["node", "tls", "signing"])
def test_keys_of_another_site_are_refused(home: ServerHome, tmp_path: Path, stolen: str) -> None:
    """Even by who owns them: a site that asks under a second name."""
    first = SiteKeys.ensure(tmp_path / "one")
    second = SiteKeys.ensure(tmp_path / "two")
    parts = {
        "node": SiteKeys(first.node_key, second.tls_key, second.secret),
        "tls": SiteKeys(second.node_key, first.tls_key, second.secret),
        "signing": SiteKeys(second.node_key, second.tls_key, first.secret),
    }
    joined(home, "one", first)
    with pytest.raises(RefusedError) as error:
        send(home, parts[stolen].request(invited(home, "two")))
    assert refused(error) == "KEYS_IN_USE"
    assert [site.name for site in registry(home).all()] == ["one"]


def test_an_invitation_stays_good_when_a_request_was_refused(home: ServerHome, north: SiteKeys, south: SiteKeys) -> None:
    joined(home, "north", north)
    invitation = invited(home, "south")
    with pytest.raises(RefusedError):
        send(home, north.request(invitation))
    assert send(home, south.request(invitation))["status"] == "waiting"


def test_an_approved_site_is_not_invited_again(home: ServerHome, north: SiteKeys) -> None:
    joined(home, "north", north)
    with pytest.raises(RefusedError, match="sites revoke north"):
        invited(home, "north")


def test_names_that_differ_in_case_only_are_not_invited(home: ServerHome) -> None:
    invited(home, "north")
    with pytest.raises(InputError, match="confused on the phone"):
        invited(home, "North")


def test_a_revoked_site_comes_back_with_new_keys_only(home: ServerHome, north: SiteKeys, tmp_path: Path) -> None:
    invitation = invited(home, "north")
    send(home, north.request(invitation))
    old = authority.admit(home, registry(home).by_name("north"), opened(home), NOW)
    registry(home).revoke("north", NOW)
    with pytest.raises(RefusedError) as error:
        send(home, north.request(invitation))
    assert refused(error) == "SITE_REVOKED"

    again = invited(home, "north")
    with pytest.raises(RefusedError, match=r"move node\.pem and tls\.pem away") as error:
        send(home, north.request(again))
    assert refused(error) == "KEYS_REVOKED"
    fresh = SiteKeys.ensure(tmp_path / "fresh")
    kept_ledger_key = SiteKeys(fresh.node_key, fresh.tls_key, north.secret)
    assert send(home, kept_ledger_key.request(again))["status"] == "waiting"
    new = authority.admit(home, registry(home).by_name("north"), opened(home), NOW + 1)
    assert registry(home).is_welcome(shown(new), NOW + 1) == new
    assert registry(home).is_welcome(shown(old), NOW + 1) is None, "the certificate of before stays revoked"


def test_revoked_keys_stay_used_up_for_good(home: ServerHome, north: SiteKeys, south: SiteKeys, tmp_path: Path) -> None:
    """Twice lost: the first keys do not come back, under this name or another."""
    for number, keys in enumerate((north, south)):
        joined(home, "north", keys, NOW + number)
        registry(home).revoke("north", NOW + number)
    for name in ("north", "west"):
        with pytest.raises(RefusedError) as error:
            send(home, SiteKeys(north.node_key, north.tls_key, SiteKeys.ensure(tmp_path).secret).request(invited(home, name)))
        assert refused(error) == "KEYS_REVOKED"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"\xff\xfe",
        b"[" * 10_000,
        b'{"site": "north"}',
        b'{"' + b"x" * 15_000 + b'": 1}',
        b" " * (MAX_REQUEST_BYTES + 1),
    ],
)
def test_malformed_requests_are_refused_in_few_words(home: ServerHome, body: bytes) -> None:
    with pytest.raises(ProtocolError) as error:
        enrol(home, body, NOW)
    assert len(str(error.value)) < 600


def test_every_field_is_checked_and_no_field_is_extra(home: ServerHome, north: SiteKeys) -> None:
    good = north.request(invited(home, "north")).model_dump()
    hostile: list[object] = [None, 1, "", "x" * 20_000, {"a": 1}, "\u0000", "' OR 1=1 --"]
    for field in good:
        for value in hostile:
            with pytest.raises(WardroundError):
                enrol(home, json.dumps({**good, field: value}).encode(), NOW)
    with pytest.raises(ProtocolError, match="admin"):
        enrol(home, json.dumps({**good, "admin": True}).encode(), NOW)
    assert registry(home).all() == []


# ---- the twelve words


def test_both_ends_see_the_same_words(home: ServerHome, north: SiteKeys) -> None:
    invitation = invited(home, "north")
    send(home, north.request(invitation))
    at_the_site = to_words(confirmation_digest(to_der(invitation.ca_certificate), invitation.study_key, north.public()))
    site = registry(home).by_name("north")
    assert authority.code_of(home, site) == at_the_site
    authority.confirm(home, site, at_the_site.upper())


def test_the_words_of_another_request_do_not_approve(home: ServerHome, north: SiteKeys, south: SiteKeys) -> None:
    send(home, north.request(invited(home, "north")))
    send(home, south.request(invited(home, "south")))
    words = authority.code_of(home, registry(home).by_name("south"))
    with pytest.raises(RefusedError, match="do not approve") as error:
        authority.confirm(home, registry(home).by_name("north"), words)
    assert refused(error) == "CODE_DIFFERS"


def test_the_words_change_with_the_study_signing_key(home: ServerHome, north: SiteKeys) -> None:
    """An invitation with a study key of one's own is found on the phone."""
    send(home, north.request(invited(home, "north")))
    site = registry(home).by_name("north")
    before = authority.code_of(home, site)
    home.study_public_key.write_text("ab" * 32)
    assert authority.code_of(home, site) != before


def test_only_what_waits_can_be_approved(home: ServerHome, north: SiteKeys) -> None:
    site = joined(home, "north", north)
    for state in (site, registry(home).revoke("north")):
        assert state is not None
        with pytest.raises(RefusedError, match="only a request that waits"):
            authority.admit(home, state, opened(home), NOW)


# ---- renewal


def body(request: str, proof: str | None = None) -> bytes:
    return json.dumps({"certificate_request": request, **({"signing_proof": proof} if proof else {})}).encode()


def test_renewal_keeps_the_key_and_the_old_certificate_until_its_end(home: ServerHome, north: SiteKeys) -> None:
    old = joined(home, "north", north)
    later, request = NOW + 340 * DAY, north.certificate_request("north")
    for _ in range(2):
        assert renew(home, old, body(request), later) == {"status": "waiting", "certificate": None}
    waiting = registry(home).by_name("north")
    assert (waiting.renewal_request, waiting.certificate) == (request, old.certificate)

    new = authority.renew(home, waiting, opened(home), later)
    assert renew(home, old, body(request), later) == {"status": "approved", "certificate": new.certificate}
    assert new.renewal_request is None
    assert [registry(home).is_welcome(shown(one), later) is not None for one in (old, new)] == [True, True]
    end = NOW + 365 * DAY
    assert [registry(home).is_welcome(shown(one), end) is not None for one in (old, new)] == [False, True]


def test_another_request_is_not_answered_with_this_ones_certificate(home: ServerHome, north: SiteKeys) -> None:
    site = joined(home, "north", north)
    assert renew(home, site, body(north.certificate_request("north")), NOW)["status"] == "waiting"


def test_a_renewal_under_another_name_is_refused(home: ServerHome, north: SiteKeys) -> None:
    site = joined(home, "north", north)
    with pytest.raises(ProtocolError, match="the invitation is for north"):
        renew(home, site, body(north.certificate_request("south")), NOW)


def test_the_tls_key_alone_cannot_change_itself(home: ServerHome, north: SiteKeys, south: SiteKeys) -> None:
    """A thief of tls.pem and certificate asks for a certificate on a key of his own."""
    site = joined(home, "north", north)
    request = certificate_request(south.tls_key, "north")
    for proof in (None, south.secret.signer.sign(renewal_message("north", request)), north.secret.signer.sign(b"another message")):
        with pytest.raises(RefusedError) as error:
            renew(home, site, body(request, proof), NOW)
        assert refused(error) == "RENEWAL_KEY"
    assert registry(home).by_name("north").renewal_request is None


def test_a_site_may_change_its_tls_key(home: ServerHome, north: SiteKeys, south: SiteKeys) -> None:
    site = joined(home, "north", north)
    request = certificate_request(south.tls_key, "north")
    proof = north.secret.signer.sign(renewal_message("north", request))
    assert renew(home, site, body(request, proof), NOW)["status"] == "waiting"
    new = authority.renew(home, registry(home).by_name("north"), opened(home), NOW)
    assert new.tls_key == south.public().tls
    assert read_certificate(str(new.certificate)).public_key() == south.tls_key.public_key()


def test_no_site_takes_over_another_ones_tls_key(home: ServerHome, north: SiteKeys, south: SiteKeys) -> None:
    site = joined(home, "north", north)
    joined(home, "south", south)
    request = certificate_request(south.tls_key, "north")
    with pytest.raises(RefusedError) as error:
        renew(home, site, body(request, north.secret.signer.sign(renewal_message("north", request))), NOW)
    assert refused(error) == "KEYS_IN_USE"


def test_a_revoked_site_renews_nothing(home: ServerHome, north: SiteKeys) -> None:
    site = joined(home, "north", north)
    renew(home, site, body(north.certificate_request("north")), NOW)
    waiting = registry(home).by_name("north")
    registry(home).revoke("north")
    with pytest.raises(RefusedError, match="is revoked"):
        renew(home, site, body(north.certificate_request("north")), NOW)
    with pytest.raises(RefusedError, match="is revoked"):
        renew(home, site, body(site.certificate_request), NOW)
    for seen_before in (waiting, site):
        with pytest.raises(RefusedError):
            authority.renew(home, seen_before, opened(home), NOW)
    assert all(one.revoked for one in registry(home).by_name("north").certificates)


def test_an_expired_site_gets_its_next_certificate_by_its_old_invitation(home: ServerHome, north: SiteKeys) -> None:
    invitation = invited(home, "north")
    send(home, north.request(invitation))
    old = authority.admit(home, registry(home).by_name("north"), opened(home), NOW)
    late = NOW + 400 * DAY
    assert registry(home).is_welcome(shown(old), late) is None
    assert "sites renew north" in str(registry(home).why_not(shown(old), late))
    new = authority.renew(home, registry(home).by_name("north"), opened(home), late)
    assert send(home, north.request(invitation), late)["certificate"] == new.certificate
    assert registry(home).is_welcome(shown(new), late) == new


@pytest.mark.parametrize(
    "content", [b"", b"{}", b'{"certificate_request": 1}', b'{"certificate_request": "x"}', b'{"certificate_request": "x", "b": 1}']
)
def test_malformed_renewals(home: ServerHome, north: SiteKeys, content: bytes) -> None:
    with pytest.raises(ProtocolError):
        renew(home, joined(home, "north", north), content, NOW)
