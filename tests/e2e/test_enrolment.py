# SPDX-License-Identifier: Apache-2.0
"""A hospital joins, through the commands of both ends and the real gateway in a process of its own."""

import json
import re
import socket
import ssl
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

import client.cli
import server.authority
import server.cli
from client.checks import LOCAL_CHECKS, Doctor, all_checks, examine
from client.checks import State as CheckState
from client.coordinator import Coordinator
from client.enrol import confirm, confirmation_words, fetch_certificate, is_confirmed, read_invitation_file, renew
from client.site_home import SiteHome
from common.crypto.certificates import DAY_SECONDS, not_after
from common.crypto.private_files import replace_private
from common.crypto.site_keys import SiteKeys
from common.errors import CoordinatorRefused, CoordinatorUnreachable, ExitCode, InputError, ProtocolError
from server.authority import code_of, load_authority, registry
from server.enrolment import invite
from server.home import ServerHome
from server.state import State
from simulations.processes import Background, environment, free_ports, wait_until

PASSPHRASE = b"correct horse battery"


@dataclass(frozen=True)
class Place:
    """A coordinator whose gateway runs, and folders for hospitals."""

    folder: Path
    home: ServerHome
    url: str

    @property
    def passphrase(self) -> str:
        return str(self.folder / "passphrase")

    def site(self, name: str) -> SiteHome:
        return SiteHome(self.folder / name)

    def invitation(self, name: str) -> Path:
        path = self.folder / f"{name}.json"
        on_server(self, "invite", name, "--out", str(path))
        return path


def on_server(place: Place, *arguments: str, expect: int = 0) -> None:
    assert server.cli.main([*arguments, "--home", str(place.home.folder)]) == expect


def join(place: Place, name: str, *, expect: int = 0, invitation: Path | None = None) -> SiteHome:
    """`wardround-client init` with a new invitation."""
    home = place.site(name)
    file = invitation or place.invitation(name)
    assert client.cli.main(["init", "--invitation", str(file), "--home", str(home.folder)]) == expect
    return home


def enrolled(place: Place, name: str) -> SiteHome:
    """A site that has its certificate."""
    home = join(place, name)
    on_server(place, "sites", "approve", name, "--code", confirmation_words(home), "--passphrase-file", place.passphrase)
    assert client.cli.main(["init", "--home", str(home.folder)]) == 0
    return home


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("enrolment")
    ports = free_ports(2)
    url = f"https://127.0.0.1:{ports[0]}"
    replace_private(folder / "passphrase", PASSPHRASE + b"\n")
    listen = ["--listen", f"127.0.0.1:{ports[0]}", "--superlink-port", str(ports[1])]
    home = ServerHome(folder / "coordinator")
    assert server.cli.main(["init", str(home.folder), "--url", url, *listen, "--passphrase-file", str(folder / "passphrase")]) == 0
    gateway = Background([sys.executable, "-m", "server.gateway", "--home", str(home.folder)], folder / "gateway.log")
    try:
        wait_until(lambda: answers(ports[0]), "starting the gateway", 60, gateway)
        yield Place(folder, home, url)
    finally:
        gateway.stop()


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", environment()["NO_PROXY"])


def test_a_hospital_joins(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    home = join(place, "north")
    said = capsys.readouterr().out
    words = confirmation_words(home)
    assert " ".join(words.split()[:6]) in said
    assert " ".join(words.split()[6:]) in said
    assert f"wardround-client start --home {home.folder}" in said
    assert code_of(place.home, registry(place.home).by_name("north")) == words  # both screens show the same

    keys = {name: (home.folder / name).read_bytes() for name in ("site.key", "node.pem", "tls.pem", "site.yaml")}
    with Coordinator(home) as coordinator, pytest.raises(CoordinatorRefused) as refused:
        coordinator.studies()
    assert refused.value.status == 401
    on_server(place, "sites", "approve", "north", "--code", words, "--passphrase-file", place.passphrase)
    assert client.cli.main(["init", "--home", str(home.folder), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {"site": "north", "home": str(home.folder), "status": "approved", "words": words, "confirmed": False}
    assert {name: (home.folder / name).read_bytes() for name in keys} == keys

    confirm(home, words)
    assert is_confirmed(home)
    home.config.write_text(home.config.read_text().replace("device: auto ", "device: cpu "))
    with Coordinator(home) as coordinator:
        assert abs(coordinator.time() - time.time()) < 5
        assert coordinator.studies() == []
        assert coordinator.receipts(0) == []
    with closing(Doctor(home)) as doctor:
        failed = {result.name: result.text for result in examine(doctor, all_checks()) if result.state is not CheckState.OK}
    assert set(failed) == {"data"}  # no cohort yet


def test_no_private_key_is_sent(place: Place) -> None:
    home = join(place, "secretive")
    request = SiteKeys.read(home.folder).request(home.read_invitation()).model_dump_json()
    stored = b"".join(path.read_bytes() for path in place.home.folder.glob("state.sqlite*"))
    assert home.read_invitation().token.encode() not in stored
    for name in ("site.key", "node.pem", "tls.pem"):
        secret = b"".join((home.folder / name).read_bytes().splitlines()[1 if name.endswith("pem") else 0 :])[:40]
        assert secret not in stored
        assert secret.decode() not in request


def test_an_invitation_is_good_for_one_set_of_keys(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    file = place.invitation("once")
    first = join(place, "once", invitation=file)
    join(place, "thief", invitation=file, expect=ExitCode.REFUSED)
    said = capsys.readouterr().err
    assert "this invitation was used with other keys; if that was not you, tell the coordinator by phone" in said
    join(place, "once", invitation=file)  # the same keys are answered again
    assert code_of(place.home, registry(place.home).by_name("once")) == confirmation_words(first)


def test_an_invitation_that_was_replaced_or_is_over(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    old = place.invitation("twice")
    (place.folder / "twice.json").rename(place.folder / "old.json")
    place.invitation("twice")
    join(place, "twice", invitation=place.folder / "old.json", expect=ExitCode.REFUSED)
    assert "is not known or has been replaced; ask the coordinator for a new one" in capsys.readouterr().err
    over = invite(place.home, "late", 1.0, now=time.time() - 7200)
    (place.folder / "late.json").write_text(over.model_dump_json())
    join(place, "late", invitation=place.folder / "late.json", expect=ExitCode.BAD_INPUT)
    assert "the invitation expired" in capsys.readouterr().err
    assert read_invitation_file(old).site == "twice"


def test_somebody_in_the_middle_is_seen_in_the_words(place: Place) -> None:
    """Whoever has the invitation first and swaps the keys ends up with other words on the coordinator's screen."""
    file = place.invitation("watched")
    thief = join(place, "middle", invitation=file)
    code = code_of(place.home, registry(place.home).by_name("watched"))
    victim = place.site("watched")
    assert client.cli.main(["init", "--invitation", str(file), "--home", str(victim.folder)]) == ExitCode.REFUSED
    assert confirmation_words(thief) == code
    assert confirmation_words(victim) != code
    with pytest.raises(InputError, match="somebody between you and the coordinator"):
        confirm(victim, code)
    on_server(place, "sites", "approve", "watched", "--code", confirmation_words(victim), "--passphrase-file", place.passphrase, expect=3)


def test_a_certificate_is_renewed_without_a_new_invitation(place: Place) -> None:
    home = enrolled(place, "lasting")
    before, keys = home.certificate.read_text(), home.tls_key.read_bytes()
    with Coordinator(home) as old:
        assert not renew(home, old, time.time())  # not due
        later = not_after(before) - 20 * DAY_SECONDS
        assert not renew(home, old, later)  # asked; the coordinator has not signed
        assert registry(place.home).by_name("lasting").renewal_request is not None
        site = registry(place.home).by_name("lasting")
        server.authority.renew(place.home, site, load_authority(place.home, PASSPHRASE), now=time.time() + 300)
        assert renew(home, old, later)
        assert old.studies() == []  # the old one is good until its end
    assert home.certificate.read_text() != before
    assert home.tls_key.read_bytes() == keys
    with Coordinator(home) as new:
        assert new.studies() == []


def test_an_expired_certificate_says_what_to_do_and_the_way_works(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    home = join(place, "sleeper")
    then = time.time() - 400 * DAY_SECONDS
    site = server.authority.admit(place.home, registry(place.home).by_name("sleeper"), load_authority(place.home, PASSPHRASE), now=then)
    replace_private(home.certificate, str(site.certificate).encode())
    with Coordinator(home) as coordinator, pytest.raises(CoordinatorUnreachable) as error:
        coordinator.studies()
    assert re.search(r"certificate \(tls\.crt\).* expired.*; ask the coordinator to run `wardround-server sites renew`", str(error.value))
    on_server(place, "sites", "renew", "sleeper", "--passphrase-file", place.passphrase)
    assert client.cli.main(["init", "--home", str(home.folder)]) == 0
    with Coordinator(home) as coordinator:
        assert coordinator.studies() == []


def test_a_revoked_site_is_told_so_on_the_open_connection_and_may_come_back(place: Place) -> None:
    home = enrolled(place, "lost")
    with Coordinator(home) as coordinator:
        assert coordinator.studies() == []
        on_server(place, "sites", "revoke", "lost")
        with pytest.raises(CoordinatorRefused) as refused:
            wait_for_refusal(coordinator)
    assert refused.value.status == 401
    assert "was revoked; to come back, ask the coordinator for a new invitation" in str(refused.value)
    assert "wardround-client check" in str(refused.value)

    (place.folder / "lost.json").unlink()
    again = place.invitation("lost")
    for name in ("node.pem", "tls.pem"):
        (home.folder / name).rename(home.folder / f"old-{name}")
    join(place, "lost", invitation=again)
    words = confirmation_words(home)
    on_server(place, "sites", "approve", "lost", "--code", words, "--passphrase-file", place.passphrase)
    with Coordinator(home) as coordinator:
        assert fetch_certificate(home, coordinator, time.time())
        assert coordinator.studies() == []


def wait_for_refusal(coordinator: Coordinator) -> None:
    for _ in range(60):  # the gateway may know for up to a second what it looked up
        coordinator.studies()
        time.sleep(0.05)


def test_another_site_s_certificate_under_this_site_s_name(place: Place) -> None:
    home, other = enrolled(place, "honest"), enrolled(place, "renamed")
    for path, theirs in ((home.certificate, other.certificate), (home.tls_key, other.tls_key)):
        replace_private(path, theirs.read_bytes())
    with closing(Doctor(home)) as doctor:
        results = {result.name: result for result in examine(doctor, LOCAL_CHECKS)}
    assert results["certificate"].state is CheckState.FAILED
    assert (
        "it is for renamed, this site is honest: the files of two sites were mixed up, or the site was renamed"
        in results["certificate"].text
    )
    assert "delete tls.crt and run `wardround-client init` again" in results["certificate"].text


def test_a_certificate_that_the_coordinator_mixed_up_is_not_kept(place: Place) -> None:
    home = join(place, "mixed")
    on_server(place, "sites", "approve", "mixed", "--code", confirmation_words(home), "--passphrase-file", place.passphrase)
    other = registry(place.home).by_name("honest").certificate
    with State(place.home.state).writing() as database:
        database.execute("UPDATE site SET certificate = ? WHERE name = 'mixed'", (other,))
    with Coordinator(home) as coordinator, pytest.raises(ProtocolError, match="was not kept: it is for honest, this site is mixed"):
        fetch_certificate(home, coordinator, time.time())
    assert not home.certificate.exists()


def test_nothing_but_enrol_is_answered_without_a_certificate(place: Place) -> None:
    context = ssl.create_default_context(cafile=str(place.home.ca_certificate))
    with httpx.Client(verify=context, base_url=place.url, trust_env=False) as stranger:
        for method, path in (("GET", "studies"), ("GET", "receipts"), ("GET", "time"), ("POST", "renew"), ("POST", "approvals")):
            assert stranger.request(method, f"/v1/wardround/{path}").status_code == 401
