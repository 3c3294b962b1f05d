# SPDX-License-Identifier: Apache-2.0
"""The coordinator's backup: everything that cannot be made again, and a restored one that gives no number twice."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from common.crypto.sealed_stream import LEAST_COST
from common.crypto.site_keys import SiteKeys
from common.errors import InputError, StorageError
from server import cli
from server.backup import LEFT_OUT, RUNS, STATE, WHOLE, back_up_server, restore_server
from server.checkpoints import Checkpoints, ServerState
from server.home import ServerHome
from server.runs import RunStore
from server.state import State
from tests.server.coordinator import founded, joined, registry

PASSPHRASE = b"correct horse battery"
MODEL = {"w": np.ones(3, np.float32)}
RUN = "ab" * 16


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> SiteKeys:
    folder = tmp_path_factory.mktemp("keys")
    folder.chmod(0o700)
    return SiteKeys.ensure(folder)


@pytest.fixture
def home(tmp_path: Path, keys: SiteKeys) -> ServerHome:
    """A coordinator with one site, one run after its third round, and everything that lies about while it runs."""
    home = founded(tmp_path / "coordinator")
    joined(home, "north", keys)
    with State(home.state).writing() as database:
        database.execute("INSERT INTO egress_receipt (site, run_id, round, statement, receipt) VALUES ('north', 'r', 1, '{}', '{}')")
    folder = home.run(RUN)
    folder.mkdir(parents=True)
    store = RunStore(folder / "rounds.sqlite")
    store.begin("study", RUN, "{}")
    for number in (1, 2, 3):
        store.record_round(RUN, number, seconds=1.0, update_norm=0.5, outcomes={"north": ("update", 1.0)})
        Checkpoints(folder / "checkpoints", "study", RUN).save(ServerState(number, MODEL, MODEL))
    (folder / "events.jsonl").write_text('{"event": "round"}\n{"event": "to')
    (folder / ".lock").touch()
    (home.folder / "ledger-heads.json").write_text("{}")
    for name in LEFT_OUT:
        (home.folder / name).mkdir() if "." not in name else (home.folder / name).write_text("x")
    return home


def save(home: ServerHome, path: Path) -> Path:
    back_up_server(home, path, PASSPHRASE, cost=LEAST_COST)
    return path


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_everything_is_there_again(home: ServerHome, tmp_path: Path) -> None:
    manifest = restore_server(save(home, tmp_path / "backup"), PASSPHRASE, tmp_path / "new")
    assert (manifest.kind, manifest.name) == ("server", home.settings.url)
    new = ServerHome(tmp_path / "new")
    run = {str(path.relative_to(home.folder)) for path in home.run(RUN).rglob("*.safetensors")}
    assert len(run) >= 2
    assert files(new.folder) == {*WHOLE, STATE, *run, f"{RUNS}/{RUN}/rounds.sqlite", f"{RUNS}/{RUN}/events.jsonl"}
    for name in (*WHOLE, *run):
        assert (new.folder / name).read_bytes() == (home.folder / name).read_bytes(), name
    assert (new.run(RUN) / "events.jsonl").read_text() == '{"event": "round"}\n'
    assert [(site.name, site.certificate) for site in registry(new).all()] == [
        (site.name, site.certificate) for site in registry(home).all()
    ]
    assert [done.round for done in RunStore(new.run(RUN) / "rounds.sqlite").rounds(RUN)] == [1, 2, 3]
    latest = Checkpoints(new.run(RUN) / "checkpoints", "study", RUN).latest()
    assert latest is not None and latest.round == 3
    assert all(path.stat().st_mode & 0o077 == 0 for path in new.folder.rglob("*"))


def test_a_receipt_never_gets_a_number_that_was_given_after_the_backup(home: ServerHome, tmp_path: Path) -> None:
    """A site asks for what is above the highest number that it has seen."""
    file = save(home, tmp_path / "backup")
    with State(home.state).writing() as database:
        for _ in range(5):
            database.execute("INSERT INTO egress_receipt (site, run_id, round, statement, receipt) VALUES ('north', 'r', 2, '', '')")
        seen = database.execute("SELECT max(id) FROM egress_receipt").fetchone()[0]
    restore_server(file, PASSPHRASE, tmp_path / "new")
    with State(tmp_path / "new" / STATE).writing() as database:
        assert database.execute("SELECT max(id) FROM egress_receipt").fetchone()[0] < seen
        database.execute("INSERT INTO egress_receipt (site, run_id, round, statement, receipt) VALUES ('north', 'r', 3, '', '')")
        assert database.execute("SELECT max(id) FROM egress_receipt").fetchone()[0] > seen


def test_a_coordinator_without_receipts_or_runs(tmp_path: Path) -> None:
    home = founded(tmp_path / "coordinator")
    (home.folder / "ca.key").rename(tmp_path / "ca.key")
    restore_server(save(home, tmp_path / "backup"), PASSPHRASE, tmp_path / "new")
    assert files(tmp_path / "new") == {*WHOLE, STATE} - {"ca.key", "ledger-heads.json"}
    with closing(sqlite3.connect(tmp_path / "new" / STATE)) as database:
        assert database.execute("SELECT seq FROM sqlite_sequence WHERE name = 'egress_receipt'").fetchone() == (1_000_000,)


def test_every_file_of_a_coordinator_is_in_the_backup_or_left_out_on_purpose() -> None:
    """What `server.home` names; a new file there has to be put into one of the lists."""
    home = ServerHome(Path("/"))
    named = {
        Path(value).name
        for name, part in vars(ServerHome).items()
        if isinstance(part, property) and name != "settings" and isinstance(value := getattr(home, name), Path)
    }
    assert named - {*WHOLE, *LEFT_OUT, STATE} == set()


def test_what_cannot_be_restored_leaves_nothing(home: ServerHome, tmp_path: Path) -> None:
    file = save(home, tmp_path / "backup")
    with pytest.raises(StorageError, match="the passphrase is wrong"):
        restore_server(file, b"another passphrase", tmp_path / "new")
    with pytest.raises(InputError, match="is not empty"):
        restore_server(file, PASSPHRASE, home.folder)
    assert not (tmp_path / "new").exists()


def test_as_it_is_typed(home: ServerHome, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    secret = tmp_path / "passphrase"
    secret.touch(0o600)
    secret.write_text("correct horse battery\n")
    file, new = str(tmp_path / "backup"), str(tmp_path / "new")
    options = ["--passphrase-file", str(secret)]
    assert cli.main(["backup", file, "--home", str(home.folder), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["has_ca_key"] is True
    assert cli.main(["backup", file, "--home", str(home.folder), *options]) == 2
    assert "never written over another file" in capsys.readouterr().err
    assert cli.main(["restore", file, new, *options]) == 0
    assert "revoke it again, before `up`" in capsys.readouterr().out
    assert cli.main(["sites", "--home", new, "--json"]) == 0
    assert [site["name"] for site in json.loads(capsys.readouterr().out)["sites"]] == ["north"]
