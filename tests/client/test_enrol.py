# SPDX-License-Identifier: Apache-2.0
"""The site's side of enrolment, with a real authority of the test's own. Both ends together: tests/e2e/test_enrolment.py."""

import stat
from pathlib import Path

import pytest

from client.coordinator import Coordinator
from client.enrol import (
    EnrolmentState,
    confirm,
    confirmation_words,
    fetch_certificate,
    is_confirmed,
    is_renewal_due,
    prepare,
    read_invitation_file,
    renew,
)
from client.own_certificate import certificate_problem, read_own
from client.site_home import SiteHome
from common.crypto.certificates import DAY_SECONDS, Authority, not_after
from common.crypto.words import to_words
from common.enrolment import EnrolRequest, RenewRequest
from common.errors import InputError, ProtocolError, StorageError
from tests.client.enrolled import NOW, certified, invitation_to, new_authority, prepared
from tests.support.tls_server import Answer, TlsServer, serving, write_server_certificate

URL = "https://coordinator.example:8443"


@pytest.fixture(scope="module")
def authority() -> Authority:
    return new_authority()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "localhost")


def content(home: SiteHome) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in home.folder.iterdir() if path.is_file() and not path.name.endswith(".lock")}


# ---- the folder


def test_a_new_folder_is_private_and_whole(tmp_path: Path, authority: Authority) -> None:
    home = prepared(tmp_path, authority, URL)
    assert set(content(home)) == {"site.key", "node.pem", "tls.pem", "invitation.json", "ca.crt", "site.yaml"}
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in (home.key, home.node_key, home.tls_key, home.invitation)} == {0}


def test_again_changes_nothing(tmp_path: Path, authority: Authority) -> None:
    home = prepared(tmp_path, authority, URL)
    home.config.write_text(home.config.read_text() + "# our own line\n")
    before = content(home)
    prepare(home, invitation_to(authority, URL, "north"), NOW + 7200)  # the same invitation, which has ended since
    assert content(home) == before


@pytest.mark.parametrize("lost", ["node.pem", "tls.pem", "site.key", "ca.crt", "site.yaml", "invitation.json"])
def test_what_a_crash_left_out_is_completed_and_the_rest_stays(tmp_path: Path, authority: Authority, lost: str) -> None:
    home = prepared(tmp_path, authority, URL)
    before = content(home)
    (home.folder / lost).unlink()
    prepare(home, invitation_to(authority, URL, "north"), NOW)
    after = content(home)
    assert set(after) == set(before)
    assert {name for name in before if after[name] != before[name]} <= {lost}


def test_a_folder_with_other_things_is_left_alone(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "holiday.txt").write_text("")
    with pytest.raises(InputError, match="not empty, and not a site's folder; name a new or empty one with --home DIR"):
        prepare(SiteHome(tmp_path), invitation_to(authority, URL), NOW)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]


def test_an_invitation_that_has_ended_makes_no_keys(tmp_path: Path, authority: Authority) -> None:
    with pytest.raises(InputError, match=r"expired 2\.0 hours ago; ask the coordinator for a new one .*invite north.*clock"):
        prepare(SiteHome(tmp_path / "north"), invitation_to(authority, URL, expires=NOW - 7200), NOW)
    assert not (tmp_path / "north").exists()


@pytest.mark.parametrize(
    ("changes", "said"), [({"site": "south"}, "site"), ({"study_key": "6" * 64}, "study_key"), ({"ca_certificate": None}, "ca_certificate")]
)
def test_an_invitation_of_another_federation_is_refused(
    tmp_path: Path, authority: Authority, changes: dict[str, str | None], said: str
) -> None:
    home = prepared(tmp_path, authority, URL)
    before = content(home)
    other = {name: new_authority().pem if value is None else value for name, value in changes.items()}
    with pytest.raises(InputError, match=rf"already belongs to site north.*differs from that in {said}; .*a folder of its own"):
        prepare(home, invitation_to(authority, URL).model_copy(update=other), NOW)
    assert content(home) == before


def test_a_new_token_of_the_same_coordinator_is_taken(tmp_path: Path, authority: Authority) -> None:
    home = prepared(tmp_path, authority, URL)
    prepare(home, invitation_to(authority, URL, token="8" * 64), NOW)
    assert home.read_invitation().token == "8" * 64
    with pytest.raises(InputError, match=r"site\.yaml: coordinator is https://coordinator.example:8443, the invitation says https://new"):
        prepare(home, invitation_to(authority, "https://new.example", token="9" * 64), NOW)


def test_files_that_are_no_invitation(tmp_path: Path, authority: Authority) -> None:
    (tmp_path / "a.json").write_text('{"site": "north"}')
    with pytest.raises(InputError, match=r"a\.json: not an invitation \(.*token.*\); ask the coordinator for a new one"):
        read_invitation_file(tmp_path / "a.json")
    with pytest.raises(InputError, match=r"b\.json: cannot be read .*name the file that the coordinator sent"):
        read_invitation_file(tmp_path / "b.json")
    with pytest.raises(StorageError, match="not a certificate"):
        prepare(SiteHome(tmp_path / "c"), invitation_to(authority, URL, ca_certificate="nothing"), NOW)


# ---- the twelve words


def test_the_words_are_compared_and_stay_compared(tmp_path: Path, authority: Authority) -> None:
    home = prepared(tmp_path, authority, URL)
    words = confirmation_words(home)
    assert not is_confirmed(home)
    with pytest.raises(InputError, match=r"these are not the twelve words of this site.*do not go on before"):
        confirm(home, to_words(bytes(16)))
    with pytest.raises(InputError, match="the code has 12 words, not 11"):
        confirm(home, " ".join(words.split()[:11]))
    assert not is_confirmed(home)
    confirm(home, words.upper().replace(" ", ", "))
    assert is_confirmed(home)
    EnrolmentState.read(home).model_copy(update={"renewal_request": "CSR"}).write(home)
    assert is_confirmed(home)


def test_other_keys_undo_the_comparison(tmp_path: Path, authority: Authority) -> None:
    home = prepared(tmp_path, authority, URL)
    confirm(home, confirmation_words(home))
    words = confirmation_words(home)
    for name in ("tls.pem", "node.pem"):
        (home.folder / name).unlink()
        prepare(home, invitation_to(authority, URL), NOW)
        assert not is_confirmed(home)
        assert confirmation_words(home) != words
        confirm(home, words := confirmation_words(home))


def test_a_damaged_state_says_what_to_do(tmp_path: Path, authority: Authority) -> None:
    home = prepared(tmp_path, authority, URL)
    home.enrolment.write_text("{")
    with pytest.raises(StorageError, match=r"enrolment\.json: damaged; delete it, and compare the twelve words again"):
        is_confirmed(home)


# ---- the certificate


def test_what_is_wrong_with_a_certificate_is_named(tmp_path: Path, authority: Authority) -> None:
    home, south = prepared(tmp_path, authority, URL), prepared(tmp_path, authority, URL, "south")

    def problem(made: SiteHome, now: float = NOW) -> str | None:
        own = read_own(made)
        assert own is not None
        return certificate_problem(home, own, now)

    assert problem(certified(home, authority)) is None
    assert "it is for south, this site is north: the files of two sites were mixed up" in str(problem(certified(south, authority, "south")))
    assert "it is for another key than tls.pem" in str(problem(certified(south, authority, "north")))
    assert "another authority issued it" in str(problem(certified(home, new_authority())))
    expired = str(problem(certified(home, authority, days=90), NOW + 91 * DAY_SECONDS))
    assert "it expired on" in expired
    assert "wardround-server sites renew" in expired
    assert "not valid yet; check this machine's clock" in str(problem(home, NOW - DAY_SECONDS))
    home.certificate.write_text("nothing")
    with pytest.raises(StorageError, match=r"tls\.crt: is no certificate; delete tls\.crt and run `wardround-client init` again"):
        read_own(home)


class TinyCoordinator:
    """Enrols whoever asks, once `approves`; renews once `renews`. Its authority and its proofs are real, its register is not."""

    def __init__(self, authority: Authority) -> None:
        self.authority, self.approves, self.renews, self.days, self.name = authority, False, False, 90, "north"
        self.now, self.requests = NOW, list[str]()

    def __call__(self, method: str, path: str, body: bytes, certificate: bytes | None) -> Answer:
        is_enrolment = path.endswith("enrol")
        request = (EnrolRequest if is_enrolment else RenewRequest).model_validate_json(body).certificate_request  # type: ignore[attr-defined]
        self.requests.append(request)
        if not (self.approves if is_enrolment else self.renews):
            return 200, {"status": "waiting", "certificate": None}
        return 200, {"status": "approved", "certificate": self.authority.client_certificate(request, self.name, self.days, self.now)}


@pytest.fixture
def tiny(tmp_path: Path, authority: Authority) -> TinyCoordinator:
    write_server_certificate(tmp_path / "server", authority)
    return TinyCoordinator(authority)


def open_at(server: TlsServer, tmp_path: Path, authority: Authority) -> tuple[SiteHome, Coordinator]:
    home = prepared(tmp_path, authority, server.url)
    return home, Coordinator(home)


def test_a_certificate_is_fetched_once_it_is_there(tmp_path: Path, authority: Authority, tiny: TinyCoordinator) -> None:
    with serving(tmp_path / "server", tiny) as server:
        home, coordinator = open_at(server, tmp_path, authority)
        assert not fetch_certificate(home, coordinator, NOW)
        assert not home.certificate.exists()
        tiny.approves = True
        assert fetch_certificate(home, coordinator, NOW)
        assert fetch_certificate(home, coordinator, NOW)
        assert len(tiny.requests) == 2  # the third time nothing was asked
        assert stat.S_IMODE(home.certificate.stat().st_mode) == 0o600
        coordinator.close()


def test_a_certificate_for_somebody_else_is_not_kept(tmp_path: Path, authority: Authority, tiny: TinyCoordinator) -> None:
    tiny.approves, tiny.authority = True, new_authority()
    with serving(tmp_path / "server", tiny) as server:
        home, coordinator = open_at(server, tmp_path, authority)
        with pytest.raises(ProtocolError, match="was not kept: another authority issued it"):
            fetch_certificate(home, coordinator, NOW)
        tiny.authority, tiny.now = authority, NOW - 400 * DAY_SECONDS
        with pytest.raises(ProtocolError, match="was not kept: it expired on"):
            fetch_certificate(home, coordinator, NOW)
        assert not home.certificate.exists()
        coordinator.close()


@pytest.mark.parametrize(
    ("days_left", "days", "due"),
    [(31, 365, False), (29.9, 365, True), (29.9, 60, False), (19.9, 60, True), (0.5, 1, False), (0.3, 1, True)],
)
def test_renewal_is_due_thirty_days_before_the_end_or_in_the_last_third(
    tmp_path: Path, authority: Authority, days_left: float, days: int, due: bool
) -> None:
    home = certified(prepared(tmp_path, authority, URL), authority, days=days)
    own = read_own(home)
    assert own is not None
    assert is_renewal_due(home, not_after(own) - days_left * DAY_SECONDS) is due
    home.certificate.unlink()
    assert not is_renewal_due(home, NOW)


def test_a_renewal_asks_the_same_until_it_is_answered_and_keeps_the_key(
    tmp_path: Path, authority: Authority, tiny: TinyCoordinator
) -> None:
    with serving(tmp_path / "server", tiny) as server:
        home, coordinator = open_at(server, tmp_path, authority)
        certified(home, authority, days=90)
        before, key = home.certificate.read_bytes(), home.tls_key.read_bytes()
        assert not renew(home, coordinator, NOW)
        assert tiny.requests == []
        later = NOW + 61 * DAY_SECONDS
        assert not renew(home, coordinator, later)
        assert not renew(home, coordinator, later)
        assert home.certificate.read_bytes() == before
        tiny.renews, tiny.now = True, later
        assert renew(home, coordinator, later)
        assert len(set(tiny.requests)) == 1
        assert home.certificate.read_bytes() != before
        assert home.tls_key.read_bytes() == key
        assert EnrolmentState.read(home).renewal_request is None
        assert not renew(home, coordinator, later)
        coordinator.close()


def test_an_answer_with_the_old_end_changes_nothing_and_is_asked_anew(tmp_path: Path, authority: Authority, tiny: TinyCoordinator) -> None:
    tiny.renews = True
    with serving(tmp_path / "server", tiny) as server:
        home, coordinator = open_at(server, tmp_path, authority)
        certified(home, authority, days=90)
        later, before = NOW + 61 * DAY_SECONDS, home.certificate.read_bytes()
        assert not renew(home, coordinator, later)
        assert not renew(home, coordinator, later)
        assert home.certificate.read_bytes() == before
        assert len(set(tiny.requests)) == 2
        coordinator.close()


def test_after_its_end_the_enrolment_is_asked_for_the_next_one(tmp_path: Path, authority: Authority, tiny: TinyCoordinator) -> None:
    later = NOW + 100 * DAY_SECONDS
    tiny.approves, tiny.now = True, later - 1000
    with serving(tmp_path / "server", tiny) as server:
        home, coordinator = open_at(server, tmp_path, authority)
        certified(home, authority, days=90)
        assert renew(home, coordinator, later)
        own = read_own(home)
        assert own is not None
        assert not_after(own) > later
        assert [asked.path.split("/")[-1] for asked in server.asked] == ["enrol"]
        coordinator.close()
