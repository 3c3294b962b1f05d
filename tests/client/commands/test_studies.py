# SPDX-License-Identifier: Apache-2.0
"""`studies`, `approve`, `reject` and `budget`, as hospital IT types them. The coordinator is away: every decision holds all the same."""

import json
from pathlib import Path

import pytest

from client import cli
from client.approvals import Approvals
from tests.client.offered import MEASURED, Hospital, hospital_study, start

STUDY = hospital_study(**{"evaluation.private": MEASURED, "privacy.epsilon": 3.0})
NEVER = 4e9


@pytest.fixture
def hospital(tmp_path: Path) -> Hospital:
    hospital = Hospital.make(tmp_path / "home")
    hospital.offer(STUDY, expires=NEVER)
    return hospital


class Shell:
    def __init__(self, hospital: Hospital, capsys: pytest.CaptureFixture[str]) -> None:
        self._home, self._capsys = str(hospital.home.folder), capsys

    def run(self, *arguments: str, expect: int = 0) -> tuple[str, str]:
        assert cli.main([*arguments, "--home", self._home]) == expect
        return self._capsys.readouterr()

    def json(self, *arguments: str) -> dict:
        return json.loads(self.run(*arguments, "--json")[0])


@pytest.fixture
def shell(hospital: Hospital, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(hospital, capsys)


def test_from_the_offer_to_the_end(shell: Shell, hospital: Hospital) -> None:
    (offered,) = shell.json("studies")["studies"]
    assert (offered["study"], offered["decision"], offered["runs_begun"], offered["expired"]) == (STUDY.id, None, 0, False)
    out, err = shell.run("studies")
    assert STUDY.id[:12] in out and "waits for you" in out and "cannot be asked now" in err
    out, err = shell.run("approve", STUDY.id[:8], "--yes", "--by", "Dr. Who")
    assert "What leaves this hospital" in out and "Approved: 1 run(s) in total" in out and "the daemon tells it when it can" in err
    (approved,) = shell.json("studies")["studies"]
    assert (approved["decision"], approved["cohort"], approved["runs_approved"], approved["told"]) == ("approved", "chest", 1, False)
    assert "coordinator not told" in " ".join(shell.run("studies")[0].split())
    training, held_out = shell.json("budget")["accounts"]
    assert training["promised"] == [{"study": STUDY.id, "count": 3, "of": 3}] and held_out["promised"][0]["count"] == 1
    assert (
        training["epsilon"] == 0.0 and 2.9 < training["epsilon_promised"] <= 3.0 and training["left"] == 8.0 - training["epsilon_promised"]
    )
    out, _ = shell.run("budget")
    assert "promised" in out and f"small ({STUDY.id[:12]}): 3 of 3 releases to come" in out
    assert shell.json("reject", STUDY.id)["decision"] == "rejected"
    assert all(account["promised"] == [] for account in shell.json("budget")["accounts"])
    record = Approvals(hospital.home).current(STUDY.id)
    assert record is not None and record.decision == "rejected"


def test_ledger_commands_take_the_home(shell: Shell, hospital: Hospital, capsys: pytest.CaptureFixture[str]) -> None:
    shell.run("approve", STUDY.id, "--yes")
    for command in ("show", "verify", "export", "recover"):
        assert cli.main(["ledger", command, str(hospital.home.folder), "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        if command == "show":
            assert facts["site"] == "north" and facts["accounts"][0]["cap"] == 8.0
        if command == "export":
            kinds = [row["content"]["kind"] for row in facts["rows"]]
            assert kinds == ["PatientsEntry", "EarmarkEntry", "EarmarkEntry"]
            assert facts["rows"][1]["content"]["study_id"] == STUDY.id


def test_who_says_no_approves_nothing(shell: Shell, hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    shell.run("approve", STUDY.id, expect=4)
    assert Approvals(hospital.home).current(STUDY.id) is None and not (hospital.home.study(STUDY.id) / "site.json").exists()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    shell.run("approve", STUDY.id)
    assert Approvals(hospital.home).current(STUDY.id) is not None


def test_machines_get_one_object(shell: Shell) -> None:
    record = shell.json("approve", STUDY.id, "--yes")
    assert (record["decision"], record["runs"], record["site"], record["told"]) == ("approved", 1, "north", False)


def test_refusals_and_mistakes_have_their_exit_codes(shell: Shell, hospital: Hospital) -> None:
    assert "0 studies start with" in shell.run("approve", "ffff" * 16, "--yes", expect=2)[1]
    assert "name one of chest" in shell.run("approve", STUDY.id, "--cohort", "gone", "--yes", expect=2)[1]
    hospital.change("limits", epsilon_per_account=2.0)
    assert "POLICY_REFUSED: the study spends ε=3" in shell.run("approve", STUDY.id, "--yes", expect=3)[1]


def test_a_study_for_somebody_else_is_not_shown(shell: Shell, hospital: Hospital) -> None:
    folder = hospital.home.study("0" * 64)
    folder.mkdir()
    signed = start(STUDY, sites=["south"])
    (folder / "offer.json").write_text(json.dumps({"study": STUDY.canonical_json, "start": signed.model_dump()}))
    assert len(shell.json("studies")["studies"]) == 1


def test_nothing_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shell = Shell(Hospital.make(tmp_path / "new"), capsys)
    assert "No study was offered yet" in shell.run("studies")[0]
    assert "Nothing was spent or promised yet" in shell.run("budget")[0]
    assert shell.json("budget")["accounts"] == []


@pytest.mark.parametrize("command", ["studies", "approve", "reject", "budget"])
def test_help_has_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"Example: wardround-client {command}" in " ".join(capsys.readouterr().out.split())
