# SPDX-License-Identifier: Apache-2.0
"""The first ten minutes of hospital IT and of the coordinator, with exactly the commands of their pages, typed into terminals.

Every line of the shell blocks of both pages is run, in the order of the pages; only folders, address, names and the study's id are this
machine's. A line that the story below does not know makes it fail, and so does one that the pages do not have.
"""

import re
from pathlib import Path

import pytest
import yaml

from common.errors import ExitCode
from simulations.federation import demo_study, write_hospitals
from simulations.loopback import COHORT, Hospital, Loopback
from simulations.processes import Background, wait_until
from tests.support.studies import write_study
from tests.support.terminal import CTRL_C, real_command, type_into

DOCS = Path(__file__).resolve().parents[3] / "docs"
PASSPHRASE = "correct horse battery staple"


class Page:
    """The commands of a page, in order; each is used once."""

    def __init__(self, name: str, here: dict[str, str]) -> None:
        text = (DOCS / name).read_text(encoding="utf-8")
        blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        self.left = [line for block in blocks for line in block.splitlines() if line.strip()]
        self._here = here

    def next(self, start: str) -> str:
        """The next command, which has to start so, with this machine's folders and names."""
        line = self.left.pop(0)
        assert line.startswith(start), f"the page says {line!r}, the story is at {start!r}"
        for shown, real in self._here.items():
            line = line.replace(shown, real)
        return line


@pytest.mark.slow
def test_the_first_ten_minutes(tmp_path: Path) -> None:
    federation = Loopback(tmp_path)
    study = demo_study(2).with_changes({"federation.min_sites": 2})
    hospitals = dict(zip(("st-mary", "general"), write_hospitals(federation, study), strict=False))
    hospitals = {name: Hospital(name, tmp_path / name, one.data, one.nominal_patients) for name, one in hospitals.items()}
    study_file = write_study(study, tmp_path)
    gateway, superlink = federation.ports
    here = {
        "https://coordinator.example:8443": f"{federation.url} --listen 127.0.0.1:{gateway} --superlink-port {superlink}",
        "/srv/wardround-site": str(tmp_path / "st-mary"),
        "/srv/wardround": str(federation.coordinator),
        "st-mary.json": str(tmp_path / "st-mary.json"),
        "study.yaml": str(study_file),
        " STUDY ": f" {study.id[:12]} ",
    }
    coordinator, hospital = Page("coordinator.md", here), Page("hospital.md", here)
    running: list[Background] = []
    try:
        story(federation, coordinator, hospital, hospitals, study.id, running)
    finally:
        codes = [process.stop() for process in reversed(running)]
    assert set(codes) == {0}
    assert (coordinator.left, hospital.left) == ([], []), "commands that the story does not run"


def story(
    federation: Loopback, coordinator: Page, hospital: Page, hospitals: dict[str, Hospital], study_id: str, running: list[Background]
) -> None:
    def start(line: str, name: str) -> Background:
        running.append(Background(real_command(line), federation.folder / "output" / f"{name}.log"))
        return running[-1]

    new = [("passphrase", PASSPHRASE), ("(?i)again|repeat", PASSPHRASE)]
    type_into(coordinator.next("wardround-server init"), new)
    up = start(coordinator.next("wardround-server up"), "up")
    wait_until(federation.is_up, "the gateway answers", 90, up)
    type_into(coordinator.next("wardround-server invite"))
    words = words_on(type_into(hospital.next("wardround-client init")))
    assert words in " ".join(type_into(coordinator.next("wardround-server sites")).split())
    type_into(coordinator.next("wardround-server sites approve"), [("twelve words", words), ("Passphrase", PASSPHRASE)])
    join_by_the_same_way(federation, hospitals["general"], running)
    describe_data(hospitals["st-mary"])
    begin = hospital.next("wardround-client start")
    others = federation.words()["general"]
    refused = type_into(begin, [("Words", others)], expect=ExitCode.BAD_INPUT)
    assert "not the twelve words of this site" in " ".join(refused.split())
    type_into(begin, [("Words", words), ("started", CTRL_C)])
    started = start(begin, "st-mary")
    wait_until((hospitals["st-mary"].home / "tls.crt").exists, "the certificate is there", 60, started)
    type_into(hospital.next("wardround-client check"))
    run = start(coordinator.next("wardround-server start"), "start")
    offered = [one.home / "studies" / study_id / "offer.json" for one in hospitals.values()]
    wait_until(lambda: all(path.exists() for path in offered), "the study is offered", 60, started)
    assert study_id[:8] in type_into(hospital.next("wardround-client studies"))
    type_into(hospital.next("wardround-client approve"), [(r"(?i)\?|\[y", "y")])
    type_into(f"wardround-client approve {study_id} --cohort {COHORT} --home {hospitals['general'].home}", [(r"(?i)\?|\[y", "y")])
    assert run.finished(300) == 0, run.said
    type_into(coordinator.next("wardround-server status"))
    assert "2" in type_into(coordinator.next("wardround-server runs"))
    assert "st-mary" in type_into(hospital.next("wardround-client status"))
    type_into(hospital.next("wardround-client budget"))
    assert "receipt" in type_into(hospital.next("wardround-client egress --verify"))


def words_on(screen: str) -> str:
    """The twelve words on a hospital's screen: two indented lines of six."""
    lines = [line.strip() for line in screen.replace("\r", "").splitlines() if re.fullmatch(r" {4}([a-z]+ ){5}[a-z]+ *", line)]
    assert len(lines) == 2, screen
    return " ".join(lines)


def join_by_the_same_way(federation: Loopback, hospital: Hospital, running: list[Background]) -> None:
    """The second hospital does what the first does."""
    invitation = federation.folder / "general.json"
    type_into(f"wardround-server invite general --home {federation.coordinator} --out {invitation}")
    words = words_on(type_into(f"wardround-client init --invitation {invitation} --home {hospital.home}"))
    dialogue = [("twelve words", words), ("Passphrase", PASSPHRASE)]
    type_into(f"wardround-server sites approve general --home {federation.coordinator}", dialogue)
    describe_data(hospital)
    line = f"wardround-client start --home {hospital.home} --code '{words}'"
    running.append(Background(real_command(line), federation.folder / "output" / "general.log"))


def describe_data(hospital: Hospital) -> None:
    """What IT writes into site.yaml: the cohort, and limits that the demonstration's study fits in."""
    path = hospital.home / "site.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings["cohorts"] = {COHORT: {"data": str(hospital.data), "nominal_patients": hospital.nominal_patients}}
    settings["limits"] |= {"epsilon_per_account": 10.0, "delta": 1e-5}
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")


def test_the_readme_shows_no_command_that_the_pages_do_not_run() -> None:
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    shown = {line.split(" #")[0].strip() for block in blocks for line in block.splitlines() if re.match("wardround-(server|client) ", line)}
    assert len(shown) >= 10
    assert shown <= {line for name in ("coordinator.md", "hospital.md") for line in Page(name, {}).left}
