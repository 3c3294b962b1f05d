# SPDX-License-Identifier: Apache-2.0
"""Making a coordinator's folder: once, wholly, and never over a key that is there."""

import os
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.crypto.certificates import AUTHORITY_DAYS, is_issued_by, names_of, read_certificate
from common.errors import InputError, StorageError
from server.founding import KeyHolder, Wanted, found
from server.home import ServerHome
from server.state import State
from tests.server.coordinator import DAY, NOW, PASSPHRASE, URL, founded, holder, opened

KEYS = ("ca.crt", "ca.key", "coordinator.key", "server.key", "study.key", "study.pub", "superexec.secret")
ALL = (*KEYS, "server.crt", "server.json", "state.sqlite")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return founded(tmp_path_factory.mktemp("made") / "coordinator").folder


@pytest.fixture
def home(made: Path, tmp_path: Path) -> ServerHome:
    """A finished folder of one's own."""
    shutil.copytree(made, tmp_path / "coordinator")
    (tmp_path / "coordinator").chmod(0o700)
    return ServerHome(tmp_path / "coordinator")


def again(home: ServerHome, wanted: Wanted | None = None, now: float = NOW) -> tuple[list[str], list[bool]]:
    """What a second call makes, and for what it asked the passphrase."""
    asked: list[bool] = []
    return found(home, wanted or Wanted(URL), holder(asked), now), asked


def contents(home: ServerHome) -> dict[str, bytes]:
    return {name: (home.folder / name).read_bytes() for name in KEYS if (home.folder / name).exists()}


def test_everything_is_made_for_the_owner_alone(tmp_path: Path) -> None:
    home = ServerHome(tmp_path / "new" / "coordinator")
    asked: list[bool] = []
    assert found(home, Wanted(URL), holder(asked), NOW) == sorted(ALL)
    assert asked == [True]
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in home.folder.iterdir() if not path.name.startswith(".")}
    assert modes == dict.fromkeys(ALL, 0o600)
    assert stat.S_IMODE(home.folder.stat().st_mode) == 0o700
    assert b"ENCRYPTED" in home.ca_key.read_bytes()
    settings = ServerHome.find(home.folder).settings
    assert (settings.url, settings.listen_host, settings.listen_port, settings.superlink_port) == (URL, "0.0.0.0", 8443, 9092)


def test_the_servers_certificate_has_every_name(tmp_path: Path) -> None:
    home = ServerHome(tmp_path / "c")
    found(home, Wanted("https://Coordinator.example:8443", "[::1]:9000", 9999, ("10.0.0.7", "alias.example")), holder(), NOW)
    certificate = read_certificate(home.certificate.read_bytes())
    assert names_of(certificate) == ["coordinator.example", "localhost", "127.0.0.1", "10.0.0.7", "alias.example"]
    assert is_issued_by(certificate, read_certificate(home.ca_certificate.read_bytes()))
    assert (home.settings.listen_host, home.settings.listen_port) == ("::1", 9000)


def test_again_changes_nothing_and_asks_for_nothing(home: ServerHome) -> None:
    before = {path.name: path.read_bytes() for path in home.folder.iterdir()}
    assert again(home) == ([], [])
    assert {path.name: path.read_bytes() for path in home.folder.iterdir()} == before


def test_an_init_killed_at_any_moment_is_completed_by_the_next(tmp_path: Path) -> None:
    """A process ends itself before each rename and link in turn; afterwards no key that was in place has changed."""
    script = Path(__file__).with_name("killed_init.py")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    answer = subprocess.run([sys.executable, script, tmp_path], capture_output=True, text=True, env=environment, timeout=60)
    assert answer.returncode == 0, answer.stderr
    assert int(answer.stdout) >= len(KEYS) + 2, "so many moments were tried"


def test_many_at_once_make_one_coordinator(tmp_path: Path) -> None:
    home = ServerHome(tmp_path / "coordinator")
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: found(home, Wanted(URL), holder(), NOW), range(4)))
    assert sorted(map(len, made)) == [0, 0, 0, len(ALL)]
    assert opened(home).certificate == read_certificate(home.ca_certificate.read_bytes())


@pytest.mark.parametrize("lost", ["ca.crt", "coordinator.key"])
def test_a_lost_key_is_not_made_anew(home: ServerHome, lost: str) -> None:
    (home.folder / lost).unlink()
    with pytest.raises(StorageError, match=f"{lost}: lost.*backup"):
        again(home)
    assert not (home.folder / lost).exists()


def test_a_lost_study_key_is_not_made_anew_but_may_live_elsewhere(home: ServerHome) -> None:
    home.study_key.unlink()
    assert again(home) == ([], [])
    home.study_public_key.unlink()
    with pytest.raises(StorageError, match=r"study\.pub: lost"):
        again(home)
    assert not home.study_key.exists()


def test_a_study_key_that_was_exchanged_is_found(home: ServerHome) -> None:
    home.study_key.write_text("ab" * 32)
    with pytest.raises(StorageError, match="not the public half"):
        again(home)


def test_the_authoritys_key_may_be_kept_elsewhere(home: ServerHome, tmp_path: Path) -> None:
    elsewhere = tmp_path / "stick.key"
    shutil.move(home.ca_key, elsewhere)
    assert again(home) == ([], [])
    home.certificate.unlink()
    with pytest.raises(InputError, match="give --ca-key FILE"):
        again(home)
    assert found(home, Wanted(URL), KeyHolder(lambda new: PASSPHRASE, elsewhere), NOW) == ["server.crt"]
    assert not home.ca_key.exists()


def test_the_authoritys_key_can_be_made_elsewhere_at_once(tmp_path: Path) -> None:
    home, stick = ServerHome(tmp_path / "c"), tmp_path / "stick.key"
    assert "ca.key" not in found(home, Wanted(URL), KeyHolder(lambda new: PASSPHRASE, stick), NOW)
    assert b"ENCRYPTED" in stick.read_bytes()


def test_the_wrong_passphrase_makes_nothing(home: ServerHome) -> None:
    home.certificate.unlink()
    with pytest.raises(InputError, match="wrong passphrase"):
        found(home, Wanted(URL), KeyHolder(lambda new: b"another passphrase"), NOW)
    assert not home.certificate.exists()


def test_a_half_made_authority_opens_with_the_first_passphrase_only(tmp_path: Path) -> None:
    """Killed between key and certificate."""
    home = founded(tmp_path / "c")
    for path in (home.ca_certificate, home.folder / "server.json"):
        path.unlink()
    with pytest.raises(InputError, match="wrong passphrase"):
        found(home, Wanted(URL), KeyHolder(lambda new: b"another passphrase"), NOW)
    assert again(home) == (["ca.crt", "server.json"], [False])


def test_the_servers_certificate_is_renewed_before_its_end_on_the_same_key(home: ServerHome) -> None:
    old = home.certificate.read_bytes()
    assert again(home, now=NOW + 334 * DAY) == ([], [])
    assert home.certificate.read_bytes() == old
    assert again(home, now=NOW + 336 * DAY) == ([], [False])
    new = read_certificate(home.certificate.read_bytes())
    assert new.public_key() == read_certificate(old).public_key()
    assert new.not_valid_after_utc.timestamp() == NOW + (336 + 365) * DAY


def test_a_name_is_added_and_the_others_stay(home: ServerHome) -> None:
    again(home, Wanted(URL, names=("first.example",)))
    assert again(home, Wanted(URL, names=("Second.example",))) == ([], [False])
    assert names_of(read_certificate(home.certificate.read_bytes())) == ["localhost", "127.0.0.1", "second.example", "first.example"]
    assert again(home) == ([], [])


def test_a_servers_key_that_was_lost_is_replaced_with_its_certificate(home: ServerHome) -> None:
    home.certificate_key.unlink()
    assert again(home) == (["server.key"], [False])
    assert again(home) == ([], [])


@pytest.mark.parametrize(
    ("wanted", "problem"),
    [
        (Wanted("https://elsewhere:8443"), "url is https://localhost:8443, not https://elsewhere:8443"),
        (Wanted(URL, "127.0.0.1:8443"), "listen_host is"),
        (Wanted(URL, superlink_port=9999), "superlink_port is 9092, not 9999"),
    ],
)
def test_settings_in_use_are_not_changed_by_init(home: ServerHome, wanted: Wanted, problem: str) -> None:
    with pytest.raises(InputError, match=problem):
        again(home, wanted)


def test_settings_that_are_not_asked_for_stay(home: ServerHome) -> None:
    home.write_settings(home.settings.model_copy(update={"listen_host": "10.0.0.1", "superlink_port": 9999}))
    assert again(home) == ([], [])
    assert home.settings.superlink_port == 9999


@pytest.mark.parametrize(
    "url", ["http://localhost", "localhost:8443", "https://", "https://a/b", "https://a:0", "https://a:99999", "https://u@a", "https://a b"]
)
def test_addresses_that_no_site_can_reach(tmp_path: Path, url: str) -> None:
    with pytest.raises(InputError):
        found(ServerHome(tmp_path / "c"), Wanted(url), holder(), NOW)
    assert not (tmp_path / "c" / "server.json").exists()


@pytest.mark.parametrize(
    "listen", ["8443", "localhost", ":8443", "localhost:", "localhost:x", "localhost:0", "localhost:70000", "0.0.0.0:9092"]
)
def test_places_where_nobody_can_listen(tmp_path: Path, listen: str) -> None:
    with pytest.raises(InputError):
        found(ServerHome(tmp_path / "c"), Wanted(URL, listen), holder(), NOW)
    assert not (tmp_path / "c").exists()


def test_a_folder_that_others_may_enter_is_refused(home: ServerHome) -> None:
    home.folder.chmod(0o755)
    with pytest.raises(InputError, match="chmod 700"):
        again(home)


def test_the_authority_outlives_its_certificates_by_years() -> None:
    assert AUTHORITY_DAYS >= 3650


def test_state_is_kept(home: ServerHome) -> None:
    with State(home.state).writing() as database:
        database.execute("INSERT INTO invitation VALUES ('a', 'b', 1, NULL)")
    again(home)
    with State(home.state).reading() as database:
        assert database.execute("SELECT count(*) FROM invitation").fetchone()[0] == 1
