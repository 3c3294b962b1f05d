# SPDX-License-Identifier: Apache-2.0
"""The doctor, over real TLS, on folders that have exactly one thing wrong."""

import json
import os
import socket
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

import client.checks
from client import cli
from client.checks import Doctor, Result, State, all_checks, examine
from client.enrol import confirm, confirmation_words
from client.site import open_ledger
from client.site_home import SiteHome
from common.crypto.certificates import DAY_SECONDS, Authority
from common.errors import ExitCode
from common.privacy.accountant import UNPROTECTED_JSON
from common.privacy.charge_book import ChargeKey, Line
from tests.client.enrolled import NOW, certified, new_authority, prepared
from tests.support.tls_server import Answer, TlsServer, connect_proxy, serving, write_server_certificate

ON_THE_WAY = ["name", "proxy", "connection", "tls", "welcome", "clock"]
NAMES = ["settings", "keys", "words", "certificate", *ON_THE_WAY, "disk", "device", "data", "cohorts", "ledger", "egress"]


@pytest.fixture(scope="module")
def authority() -> Authority:
    return new_authority()


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


def tell_time(method: str, path: str, body: bytes, certificate: bytes | None) -> Answer:
    if certificate is None:
        return 401, {"code": "NO_CERTIFICATE", "message": "this call needs a certificate"}
    return 200, {"time": time.time()}


@pytest.fixture
def server(tmp_path: Path, authority: Authority) -> Iterator[TlsServer]:
    write_server_certificate(tmp_path / "server", authority)
    with serving(tmp_path / "server", tell_time) as running:
        yield running


@pytest.fixture
def home(tmp_path: Path, authority: Authority, server: TlsServer) -> SiteHome:
    """A site with nothing wrong."""
    made = certified(prepared(tmp_path, authority, server.url), authority)
    confirm(made, confirmation_words(made))
    np.savez(tmp_path / "chest.npz", images=np.zeros((2, 2)))
    rewrite(made, "cohorts: {}", f"cohorts: {{chest: {{data: {tmp_path / 'chest.npz'}, nominal_patients: 60}}}}")
    rewrite(made, "device: auto ", "device: cpu ")
    return made


def rewrite(home: SiteHome, old: str, new: str) -> None:
    text = home.config.read_text()
    assert old in text
    home.config.write_text(text.replace(old, new))


def examined(home: SiteHome, clock: Callable[[], float] = time.time) -> dict[str, Result]:
    with closing(Doctor(home, clock)) as doctor:
        return {result.name: result for result in examine(doctor, all_checks())}


def only_failure(home: SiteHome, *, not_tested: tuple[str, ...] = (), clock: Callable[[], float] = time.time) -> Result:
    results = examined(home, clock)
    (failed,) = [result for result in results.values() if result.state is State.FAILED]
    assert {name for name, result in results.items() if result.state is State.NOT_TESTED} == set(not_tested)
    assert failed.exit_code is not ExitCode.DONE
    assert "\n" not in failed.text
    return failed


def test_a_site_with_nothing_wrong(home: SiteHome) -> None:
    results = examined(home)
    assert list(results) == NAMES
    assert {name: result.text for name, result in results.items() if result.state is not State.OK} == {}
    assert "localhost is " in results["name"].text
    assert "89 days" in results["certificate"].text or "90 days" in results["certificate"].text
    assert results["ledger"].text == "nothing was spent yet"


def test_nothing_is_changed(home: SiteHome) -> None:
    def state() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in home.folder.iterdir() if path.is_file() and not path.name.endswith(".lock")}

    before = state()
    examined(home)
    assert state() == before


def test_a_policy_file_with_a_mistake(home: SiteHome) -> None:
    rewrite(home, "min_patients", "min_patient")
    failed = only_failure(home, not_tested=(*ON_THE_WAY, "device", "data", "cohorts"))
    assert (failed.name, failed.exit_code) == ("settings", ExitCode.BAD_INPUT)
    assert "limits.min_patient: unknown key; did you mean min_patients?" in failed.text


def test_a_policy_file_of_another_site(home: SiteHome) -> None:
    rewrite(home, "name: north", "name: south")
    failed = only_failure(home)
    assert failed.name == "settings"
    assert "name is south, the invitation says north" in failed.text


def test_a_key_that_others_can_read(home: SiteHome) -> None:
    home.node_key.chmod(0o644)
    results = examined(home)
    assert "node.pem: others may read this key; run chmod 600 on it" in results["keys"].text
    home.node_key.chmod(0o600)
    home.folder.chmod(0o755)
    assert "others may enter this folder" in only_failure(home).text


def test_words_that_were_not_compared(home: SiteHome) -> None:
    home.enrolment.unlink()
    failed = only_failure(home)
    assert failed.name == "words"
    assert "call the coordinator, then run `wardround-client start`" in failed.text


def test_no_certificate_yet(home: SiteHome) -> None:
    home.certificate.unlink()
    failed = only_failure(home, not_tested=("welcome", "clock"))
    assert failed.name == "certificate"
    assert "the coordinator runs `wardround-server sites approve`" in failed.text


def test_a_certificate_that_has_ended_here_and_there(home: SiteHome, authority: Authority) -> None:
    certified(home, authority, days=1, now=NOW - 3 * DAY_SECONDS)
    results = examined(home)
    assert results["certificate"].state is State.FAILED
    assert "it expired on" in results["certificate"].text
    assert "wardround-server sites renew" in results["certificate"].text
    assert results["welcome"].state is State.FAILED
    assert "has expired" in results["welcome"].text
    assert (results["tls"].state, results["clock"].state) == (State.OK, State.NOT_TESTED)


def test_a_certificate_that_ends_soon_says_what_was_not_done(home: SiteHome, authority: Authority) -> None:
    certified(home, authority, days=7)
    assert "it should have been renewed: ask the coordinator to run `wardround-server sites renew`" in examined(home)["certificate"].text


def test_the_files_of_another_site(tmp_path: Path, home: SiteHome, authority: Authority) -> None:
    other = certified(prepared(tmp_path, authority, "https://localhost:1", "south"), authority, "south")
    home.certificate.write_bytes(other.certificate.read_bytes())
    results = examined(home)
    assert "it is for south, this site is north" in results["certificate"].text
    home.tls_key.write_bytes(other.tls_key.read_bytes())
    assert "it is for south, this site is north" in examined(home)["certificate"].text


def test_a_host_that_has_no_address(home: SiteHome, server: TlsServer) -> None:
    rewrite(home, server.url, "https://coordinator.invalid:8443")
    results = examined(home)
    assert "the coordinator's host coordinator.invalid has no address" in results["name"].text
    assert {results[name].state for name in ("name", "connection", "tls", "welcome")} == {State.FAILED}
    assert results["proxy"].state is State.OK


def test_a_port_where_nobody_listens(home: SiteHome, server: TlsServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    rewrite(home, server.url, f"https://localhost:{port}")
    results = examined(home)
    assert "the coordinator does not answer at localhost" in results["connection"].text
    assert "firewall (outbound, TCP)" in results["connection"].text
    assert (results["name"].state, results["tls"].exit_code) == (State.OK, ExitCode.FEDERATION)


def test_a_proxy_that_breaks_tls_open(tmp_path: Path, home: SiteHome, server: TlsServer) -> None:
    write_server_certificate(tmp_path / "middle", new_authority())
    with serving(tmp_path / "middle", tell_time) as middle:
        rewrite(home, server.url, middle.url)
        results = examined(home)
    assert results["connection"].state is State.OK
    assert results["tls"].state is State.FAILED
    assert "exempt this host from the proxy's inspection" in results["tls"].text


def test_a_proxy_that_works(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    with connect_proxy() as targets:
        monkeypatch.setenv("HTTPS_PROXY", targets[0].replace("http://", "http://user:secret@"))
        results = examined(home)
    assert results["proxy"].text == f"through {targets[0].removeprefix('http://')}"
    assert {name for name, result in results.items() if result.state is State.NOT_TESTED} == {"name", "connection"}
    assert {result.state for result in results.values()} == {State.OK, State.NOT_TESTED}
    assert len(targets) > 1


def test_a_proxy_that_is_not_there(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:secret@127.0.0.1:{port}")
    results = examined(home)
    assert f"the proxy of HTTPS_PROXY does not answer at 127.0.0.1:{port}" in results["proxy"].text
    assert not any("secret" in result.text for result in results.values())
    monkeypatch.setenv("NO_PROXY", "localhost")
    assert {result.state for result in examined(home).values()} == {State.OK}


@pytest.mark.parametrize(("ahead", "is_good"), [(4, True), (6, False), (-304, True), (-307, False)])
def test_the_clock_may_differ_as_much_as_flower_allows(home: SiteHome, ahead: float, is_good: bool) -> None:
    result = examined(home, lambda: time.time() + ahead)["clock"]
    assert (result.state is State.OK) is is_good
    assert f"{abs(ahead)}." in result.text or f"{abs(ahead) - 1}." in result.text
    assert ("ahead of" if ahead > 0 else "behind") in result.text


def test_a_disk_that_is_full(home: SiteHome, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(client.checks.shutil, "disk_usage", lambda path: usage(10**12, 10**12, 10**8))
    failed = only_failure(home)
    assert (failed.name, failed.exit_code) == ("disk", ExitCode.STORAGE)
    assert "100 MB are free, at least 1,000 MB are needed; free some space" in failed.text


def test_a_card_that_is_not_there(home: SiteHome) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a card")
    rewrite(home, "device: cpu", "device: cuda:1")
    failed = only_failure(home)
    assert failed.name == "device"
    assert "no card can be used here; check the driver (nvidia-smi), or write device: cpu" in failed.text
    rewrite(home, "device: cuda:1", "device: auto")
    assert "training on the processor" in examined(home)["device"].text


def test_data_that_cannot_be_read(tmp_path: Path, home: SiteHome) -> None:
    (tmp_path / "chest.npz").write_bytes(b"no zip")
    (tmp_path / "empty").mkdir()
    rewrite(
        home,
        "nominal_patients: 60}}",
        "nominal_patients: 60}, lung: {data: ../empty, nominal_patients: 60}, x: {data: y, nominal_patients: 9}}",
    )
    failed = only_failure(home)
    assert failed.name == "data"
    assert f"cohort chest: {tmp_path / 'chest.npz'} cannot be read (File is not a zip file)" in failed.text
    assert "cannot be read (an empty folder)" in failed.text
    assert "cohort x: " in failed.text
    assert "y cannot be read (No such file or directory)" in failed.text


def test_no_cohort_yet(home: SiteHome, tmp_path: Path) -> None:
    rewrite(home, f"cohorts: {{chest: {{data: {tmp_path / 'chest.npz'}, nominal_patients: 60}}}}", "cohorts: {}")
    assert "site.yaml names no cohort yet" in only_failure(home).text


def test_a_ledger_that_was_edited(home: SiteHome) -> None:
    ledger = open_ledger(home.folder)
    account = ledger.register({Line.TRAINING: ["p1"]}, 1e-6)
    ledger.reserve(ChargeKey(account, "5" * 64, "7" * 32, 1, "9" * 64), UNPROTECTED_JSON, 1)
    assert examined(home)["ledger"].text == "2 rows are whole, 0 receipts fit"
    content = home.ledger.read_bytes()
    assert content.count(b"7" * 32) > 0
    home.ledger.write_bytes(content.replace(b"7" * 32, b"8" * 32))
    failed = only_failure(home)
    assert (failed.name, failed.exit_code) == ("ledger", ExitCode.STORAGE)


def test_an_egress_log_that_was_edited(home: SiteHome) -> None:
    home.egress.write_text('{"number": 1}\n')
    failed = [result for result in examined(home).values() if result.state is State.FAILED]
    assert [(one.name, one.exit_code) for one in failed] == [("ledger", ExitCode.STORAGE), ("egress", ExitCode.STORAGE)]
    assert "line 1" in failed[1].text and "egress.jsonl" in failed[0].text


# ---- the command


def test_the_command_prints_a_line_each_and_ends_with_0(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "--home", str(home.folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == NAMES
    assert {line.split()[0] for line in lines} == {"ok"}


def test_the_command_ends_with_the_code_of_the_first_failure(home: SiteHome, capsys: pytest.CaptureFixture[str]) -> None:
    home.egress.write_text("x\n")
    assert cli.main(["check", "--home", str(home.folder), "--json"]) == ExitCode.STORAGE
    facts = json.loads(capsys.readouterr().out)
    assert facts["ok"] is False
    assert [line["name"] for line in facts["checks"]] == NAMES
    assert facts["checks"][-1]["state"] == "failed"
    home.enrolment.unlink()
    assert cli.main(["check", "--home", str(home.folder)]) == ExitCode.BAD_INPUT


def test_the_home_comes_from_the_environment_too(
    home: SiteHome, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WARDROUND_SITE", str(home.folder))
    assert cli.main(["check", "--json"]) == 0
    assert os.environ["WARDROUND_SITE"] not in capsys.readouterr().err
