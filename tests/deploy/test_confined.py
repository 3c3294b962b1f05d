# SPDX-License-Identifier: Apache-2.0
"""A coordinator and a hospital train together inside what their units allow: no rule of the units keeps them from their work."""

import os
import subprocess
from pathlib import Path

import pytest

from simulations.loopback import CLIENT, SERVER, START_SECONDS, Hospital
from simulations.processes import Background, CommandFailed, Finished, command_line, environment, wait_until
from tests.deploy import confined
from tests.deploy.units import CLIENT_UNIT, SERVER_UNIT
from tests.support.federation import Federation

ROOT = Path(__file__).resolve().parents[2]
MISSING = confined.possible()


class Confined(Federation):
    """A federation whose every command runs as systemd would run it."""

    def line(self, unit: Path, own: Path, inner: list[str]) -> list[str]:
        for folder in (own, self.cache(own), self.folder / "invitations"):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        give_away(own, self.cache(own), self.folder / "invitations", self.passphrase)
        return confined.command(unit, [own, self.cache(own), self.folder / "invitations"], [self.folder], inner)

    def cache(self, own: Path) -> Path:
        return self.folder / "cache" / own.name

    def changes(self, own: Path) -> dict[str, str]:
        return {"PYTHONPATH": str(ROOT), "WARDROUND_CACHE": str(self.cache(own))}

    def finished(self, unit: Path, own: Path, program: str, words: tuple[str | Path, ...]) -> Finished:
        line = self.line(unit, own, command_line(program, *words))
        done = subprocess.run(line, capture_output=True, text=True, timeout=180, env=environment(self.changes(own)))
        if done.returncode:
            raise CommandFailed(f"{program} {words[0]}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return Finished(0, done.stdout, done.stderr)

    def background(self, unit: Path, own: Path, name: str, inner: list[str]) -> Background:
        return Background(self.line(unit, own, inner), self.folder / "output" / f"{name}.log", self.changes(own))

    def make_coordinator(self) -> None:
        self.passphrase.touch(mode=0o600)
        self.passphrase.write_text("correct horse\n", encoding="ascii")
        address, port = f"127.0.0.1:{self.ports[0]}", str(self.ports[1])
        options = ("--url", self.url, "--listen", address, "--superlink-port", port, "--passphrase-file", self.passphrase)
        self.finished(SERVER_UNIT, self.coordinator, SERVER, ("init", self.coordinator, *options))

    def on_server(self, *arguments: str | Path, expect: int | None = 0, timeout_seconds: float = 120.0) -> Finished:
        return self.finished(SERVER_UNIT, self.coordinator, SERVER, (*arguments, "--home", self.coordinator))

    def at(self, hospital: Hospital, *arguments: str | Path, expect: int | None = 0, answer: str = "") -> Finished:
        return self.finished(CLIENT_UNIT, hospital.home, CLIENT, (*arguments, "--home", hospital.home))

    def up(self) -> None:
        self.server = self.background(SERVER_UNIT, self.coordinator, "up", command_line(SERVER, "up", "--home", self.coordinator))
        wait_until(self.is_up, "starting the server", START_SECONDS, self.server)

    def start_site(self, hospital: Hospital, words: str | None = None) -> None:
        code = () if words is None else ("--code", words)
        line = command_line(CLIENT, "start", "--home", hospital.home, *code)
        self.sites[hospital.name] = self.background(CLIENT_UNIT, hospital.home, hospital.name, line)

    def on_server_in_background(self, *arguments: str | Path) -> Background:
        line = command_line(SERVER, *arguments, "--home", self.coordinator)
        self.starts.append(self.background(SERVER_UNIT, self.coordinator, f"start-{len(self.starts) + 1}", line))
        return self.starts[-1]


def give_away(*paths: Path) -> None:
    """Everything in these folders belongs to the service's user."""
    for path in paths:
        for one in (path, *path.rglob("*")):
            os.chown(one, confined.USER_ID, confined.USER_ID, follow_symlinks=False)


def rights(pid: int) -> dict[str, str]:
    lines = (line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines())
    facts = {name: value.split() for name, value in lines}
    return {name: facts[name][0] for name in ("Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp")}


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"cannot confine processes here: {MISSING}")
def test_a_round_is_trained_inside_what_the_units_allow(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    federation = Confined(tmp_path, limits={"epsilon_per_account": 100.0, "delta": 1e-5})
    try:
        federation.make_coordinator()
        federation.up()
        federation.start_site(federation.add("alpha"), federation.words()["alpha"])
        study = federation.study("confined", **{"federation.rounds": 2, "federation.min_sites": 1})
        run_id = federation.train(study, ("alpha",))
        assert [row["outcome"] for row in federation.outcomes(run_id)] == ["update", "update"]
        assert federation.server is not None
        nothing = "0" * 16
        held = {"Uid": str(confined.USER_ID), "CapEff": nothing, "CapBnd": nothing, "NoNewPrivs": "1", "Seccomp": "2"}
        assert [rights(process.pid) for process in (federation.server, federation.sites["alpha"])] == [held, held]
        assert federation.at(federation.hospitals["alpha"], "egress", "--verify").code == 0
    finally:
        codes = federation.stop()
    assert set(codes.values()) == {0}
