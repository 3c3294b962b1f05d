# SPDX-License-Identifier: Apache-2.0
"""Certificates and names that do not go together, and somebody in between at enrolment: refused with words that say what to do."""

import json
import shutil
from pathlib import Path

import pytest

from common.crypto.secrets import Secret
from common.errors import ExitCode
from simulations.loopback import Hospital
from simulations.processes import run
from tests.support.federation import GUEST, HONEST, Federation
from tests.support.tunnel import tunnel

ELSEWHERE = "127.0.0.2"


@pytest.fixture
def copy(federation: Federation, tmp_path: Path) -> Hospital:
    """The guest's folder, to be spoiled."""
    home = tmp_path / "site"
    shutil.copytree(federation.hospitals[GUEST].home, home)
    return Hospital(GUEST, home, home, 1)


def failed_checks(federation: Federation, hospital: Hospital) -> str:
    """What `check` says does not work."""
    checked = federation.at(hospital, "check", "--json", expect=None)
    assert checked.code != 0
    return json.dumps([one for one in checked.json["checks"] if one["state"] == "failed"])


@pytest.mark.parametrize("with_key", [False, True])
def test_a_renamed_certificate_is_found_at_the_site(federation: Federation, copy: Hospital, with_key: bool) -> None:
    """Somebody put another hospital's certificate under this site's name, alone or with its key."""
    other = federation.hospitals[HONEST[0]].home
    shutil.copy(other / "tls.crt", copy.home / "tls.crt")
    if with_key:
        shutil.copy(other / "tls.pem", copy.home / "tls.pem")
    said = failed_checks(federation, copy)
    assert f"it is for {HONEST[0]}, this site is {GUEST}" in said
    assert "wardround-client init" in said


def test_a_renamed_site_is_refused_at_enrolment(federation: Federation, tmp_path: Path) -> None:
    """An invitation for one name does not bring in another, whatever the invitation file says."""
    path = federation.invite("newcomer")
    invitation = json.loads(path.read_text(encoding="utf-8"))
    renamed = tmp_path / "renamed.json"
    renamed.write_text(json.dumps({**invitation, "site": HONEST[0]}), encoding="utf-8")
    refused = run("wardround-client", "init", "--invitation", renamed, "--home", tmp_path / "thief", expect=None)
    assert refused.code == ExitCode.REFUSED
    assert "another site" in refused.err and "ask the coordinator" in refused.err
    assert not federation.rows("SELECT name FROM site WHERE name = ?", "newcomer")


def test_a_coordinator_under_another_host_is_refused_by_the_site(federation: Federation, copy: Hospital) -> None:
    """The real gateway, reached under an address that its certificate does not have: whoever stands there may be anybody."""
    with tunnel(federation.ports[0], host=ELSEWHERE) as port:
        settings = copy.home / "site.yaml"
        settings.write_text(settings.read_text(encoding="utf-8").replace(federation.url, f"https://{ELSEWHERE}:{port}"), encoding="utf-8")
        said = failed_checks(federation, copy)
    assert "for another host" in said and "do not go on" in said


def test_swapped_keys_are_found_by_the_twelve_words_of_both_ends(federation: Federation, tmp_path: Path) -> None:
    """Somebody between the two puts its own study-signing key into the invitation: neither end goes on with the other's words."""
    path = federation.invite("victim")
    invitation = json.loads(path.read_text(encoding="utf-8"))
    swapped = {**invitation, "study_key": Secret(b"m" * 32).signer.public_key}
    path.write_text(json.dumps(swapped), encoding="utf-8")
    victim = Hospital("victim", tmp_path / "victim", tmp_path, 1)
    here = federation.request(victim, path)
    there = federation.words()["victim"]
    assert here != there
    started = federation.at(victim, "start", "--code", there, expect=ExitCode.BAD_INPUT)
    assert "not the twelve words of this site" in started.err
    passphrase = ("--passphrase-file", federation.passphrase)
    approved = federation.on_server("sites", "approve", "victim", "--code", here, *passphrase, expect=ExitCode.REFUSED)
    assert "CODE_DIFFERS" in approved.err
    assert federation.rows("SELECT status FROM site WHERE name = ?", "victim") == [{"status": "requested"}]
    federation.on_server("sites", "revoke", "victim")
