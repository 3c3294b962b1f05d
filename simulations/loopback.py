# SPDX-License-Identifier: Apache-2.0
"""A coordinator and hospitals on this machine, through the real commands, each in a process of its own.

Nothing here is a shortcut: keys, invitations, twelve words, approvals and daemons are those of a real federation; only the network is
loopback. The demo, the end-to-end tests and the benchmark all stand on this. However this process ends, none of the others is left. A
folder holds

coordinator/              the coordinator's folder
hospitals/<name>/         one hospital's folder
data/<name>.npz           one hospital's images
output/                   what the background processes printed
passphrase                of the authority's key (a real coordinator types it)
"""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from secrets import token_hex
from typing import Any

import httpx

from common.crypto.private_files import replace_private
from common.files import write_atomic
from simulations.processes import Background, CommandFailed, Finished, Leash, free_ports, leashed_command_line, run, wait_until

SERVER, CLIENT = "wardround-server", "wardround-client"
COHORT = "chest"
START_SECONDS = 90.0


@dataclass(frozen=True)
class Hospital:
    """One hospital: its name, its folder, its images (npz), and its public nominal number of patients."""

    name: str
    home: Path
    data: Path
    nominal_patients: int


@dataclass
class Loopback:
    """The federation in `folder`; `ports` are those of gateway and SuperLink."""

    folder: Path
    limits: dict[str, float] = field(default_factory=dict)
    ports: Sequence[int] = field(default_factory=lambda: free_ports(2))
    server: Background | None = None
    sites: dict[str, Background] = field(default_factory=dict)
    metrics: dict[str, str] = field(default_factory=dict)
    """Where each process serves its figures, by the name of the hospital or `coordinator`."""
    starts: list[Background] = field(default_factory=list)

    @cached_property
    def leash(self) -> Leash:
        """What every process in the background hangs on."""
        return Leash()

    @property
    def coordinator(self) -> Path:
        """The coordinator's folder."""
        return self.folder / "coordinator"

    @property
    def url(self) -> str:
        """Where the gateway answers."""
        return f"https://127.0.0.1:{self.ports[0]}"

    @property
    def passphrase(self) -> Path:
        """The file with the passphrase of the authority's key."""
        return self.folder / "passphrase"

    def hospital(self, name: str, patients: int) -> Hospital:
        """The hospital `name`, with its images where they belong."""
        return Hospital(name, self.folder / "hospitals" / name, self.folder / "data" / f"{name}.npz", patients)

    def on_server(self, *arguments: str | Path, expect: int | None = 0, timeout_seconds: float = 120.0) -> Finished:
        """`wardround-server …` to its end."""
        return run(SERVER, *arguments, "--home", self.coordinator, expect=expect, timeout_seconds=timeout_seconds)

    def at(self, hospital: Hospital, *arguments: str | Path, expect: int | None = 0, answer: str = "") -> Finished:
        """`wardround-client …` at a hospital, to its end."""
        return run(CLIENT, *arguments, "--home", hospital.home, expect=expect, answer=answer)

    def make_coordinator(self) -> None:
        """Certificate authority, keys and state folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.passphrase.touch(mode=0o600)
        self.passphrase.write_text(token_hex(16) + "\n", encoding="ascii")
        address = f"127.0.0.1:{self.ports[0]}"
        listen = ("--listen", address, "--superlink-port", str(self.ports[1]))
        run(SERVER, "init", self.coordinator, "--url", self.url, *listen, "--passphrase-file", self.passphrase)
        settings = json.loads((self.coordinator / "server.json").read_text(encoding="utf-8"))
        settings["metrics_listen"] = self._metrics_address("coordinator")
        replace_private(self.coordinator / "server.json", json.dumps(settings, indent=1).encode())

    def up(self) -> None:
        """Start the server and wait until its gateway answers."""
        command = leashed_command_line(SERVER, "up", "--home", self.coordinator)
        self.server = Background(command, self.folder / "output" / "coordinator.log", leash=self.leash)
        wait_until(self.is_up, "starting the server", START_SECONDS, self.server)

    def is_up(self) -> bool:
        """Whether the gateway says that all parts run."""
        context = ssl.create_default_context(cafile=str(self.coordinator / "ca.crt"))
        try:
            return httpx.get(f"{self.url}/health", verify=context, trust_env=False, timeout=5).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def invite(self, name: str) -> Path:
        """An invitation, as a file."""
        path = self.folder / "invitations" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        self.on_server("invite", name, "--out", path)
        return path

    def request(self, hospital: Hospital, invitation: Path) -> str:
        """The hospital's keys and its request, from the invitation; the twelve words on its screen."""
        hospital.home.parent.mkdir(parents=True, exist_ok=True)
        return str(self.at(hospital, "init", "--invitation", invitation, "--json").json["words"])

    def words(self) -> dict[str, str]:
        """The twelve words of each site, as the coordinator sees them."""
        sites = self.on_server("sites", "--json").json["sites"]
        return {str(site["name"]): str(site["code"]) for site in sites}

    def admit(self, name: str, words: str) -> None:
        """The coordinator types the words that the site has read out, and issues its certificate."""
        self.on_server("sites", "approve", name, "--code", words, "--passphrase-file", self.passphrase)

    def enrol(self, hospital: Hospital) -> None:
        """Invitation, request, the words typed at the coordinator's end, and the hospital's settings."""
        self.admit(hospital.name, self.request(hospital, self.invite(hospital.name)))
        self.configure(hospital)

    def configure(self, hospital: Hospital) -> None:
        """What hospital IT writes into the template of site.yaml: the cohort and the limits."""
        path = hospital.home / "site.yaml"
        cohort = f"  {COHORT}:\n    data: {json.dumps(str(hospital.data))}\n    nominal_patients: {hospital.nominal_patients}\n"
        text = _replaced(r"^cohorts: \{\}\n", f"cohorts:\n{cohort}", path.read_text(encoding="utf-8"))
        for name, value in self.limits.items():
            text = _replaced(rf"^  {name}: \S+", f"  {name}: {value:.8f}", text)
        text = _replaced(r"^metrics: \S+", f"metrics: {self._metrics_address(hospital.name)}", text)
        write_atomic(path, _replaced(r"^# threads: 4 ", "threads: 1   ", text))

    def scrape(self, name: str = "coordinator") -> str:
        """What the coordinator or a hospital's daemon says on its page of metrics. Raises httpx.HTTPError."""
        answer = httpx.get(f"http://{self.metrics[name]}/metrics", trust_env=False, timeout=10)
        return answer.raise_for_status().text

    def _metrics_address(self, name: str) -> str:
        self.metrics[name] = f"127.0.0.1:{free_ports(1)[0]}"
        return self.metrics[name]

    def start_site(self, hospital: Hospital, words: str | None = None, changes: Mapping[str, str] | None = None) -> None:
        """Start a hospital's daemon; the first start takes the words that the coordinator read out. `changes` go into its environment."""
        code = ("--code", words) if words is not None else ()
        command = leashed_command_line(CLIENT, "start", "--home", hospital.home, *code)
        self.sites[hospital.name] = Background(command, self.folder / "output" / f"{hospital.name}.log", changes, leash=self.leash)

    def stop_site(self, name: str) -> int:
        """Stop a hospital's daemon."""
        return self.sites.pop(name).stop()

    def offer(self, study: Path, names: Iterable[str], *options: str) -> Background:
        """`wardround-server start`: offers the study, waits for the approvals, runs it. Its output is in the log."""
        return self.on_server_in_background("start", study, "--sites", ",".join(names), *options)

    def on_server_in_background(self, *arguments: str | Path) -> Background:
        """`wardround-server …`, stopped at the latest with everything else."""
        log = self.folder / "output" / f"start-{len(self.starts) + 1}.log"
        self.starts.append(Background(leashed_command_line(SERVER, *arguments, "--home", self.coordinator), log, leash=self.leash))
        return self.starts[-1]

    def studies(self, hospital: Hospital) -> list[dict[str, Any]]:
        """The studies that a hospital was offered."""
        return list(self.at(hospital, "studies", "--json").json["studies"])

    def wait_for_offer(self, hospital: Hospital, study_id: str, offered: Background | None = None, seconds: float = 60.0) -> None:
        """Wait until the daemon of a hospital has fetched the offer of a study."""
        path = hospital.home / "studies" / study_id / "offer.json"
        wait_until(path.exists, f"{hospital.name} is offered study {study_id[:8]}", seconds, offered)

    def approve(self, hospital: Hospital, study_id: str, *options: str) -> Finished:
        """The hospital approves a study."""
        return self.at(hospital, "approve", study_id, "--cohort", COHORT, "--by", "the demo", "--yes", *options)

    def stop(self) -> dict[str, int]:
        """Stop what still runs, hospitals first; the exit codes by name."""
        codes = {f"start-{number}": one.stop() for number, one in enumerate(self.starts, 1) if one.code is None}
        codes |= {name: self.stop_site(name) for name in list(self.sites)}
        if self.server is not None:
            codes["coordinator"] = self.server.stop()
            self.server = None
        return codes


def wait_for_end(started: Background, seconds: float = 600.0) -> str:
    """Wait until `wardround-server start` has ended well; what it printed. Raises CommandFailed."""
    before = time.monotonic()
    if started.finished(seconds) != 0:
        raise CommandFailed(f"the run ended with exit code {started.code} after {time.monotonic() - before:.0f} s\n{started.said}")
    return started.said


def _replaced(pattern: str, by: str, text: str) -> str:
    """`text` with the one line that fits `pattern` replaced. Raises CommandFailed when the template has no such line."""
    new, count = re.subn(pattern, lambda _: by, text, count=1, flags=re.MULTILINE)
    if not count:
        raise CommandFailed(f"site.yaml: the template has no line {pattern}")
    return new
