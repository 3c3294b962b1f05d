# SPDX-License-Identifier: Apache-2.0
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import simulations
from common.errors import ExitCode, FederationError, InputError
from common.study_file import load_study
from simulations import cli, options
from simulations.options import RunOptions, RunOutcome, find_study
from tests.simulations.sample_run import sample_run

ROOT = Path(simulations.__file__).resolve().parents[1]
HEAVY = ("torch", "numpy", "flwr", "ray", "sklearn", "matplotlib", "scipy", "opacus")
COMMANDS = ("run", "compare", "validate", "describe", "plan", "doctor")
Runner = Callable[[RunOptions, tuple[Any, ...]], list[RunOutcome]]


def loaded_by(arguments: list[str], **environment: str) -> tuple[int, list[str], str]:
    """Exit code, heavy modules and stdout of one command in a process of its own."""
    program = (
        "import json, sys\nfrom simulations.cli import main\ntry:\n    code = main(sys.argv[1:])\nexcept SystemExit as end:\n"
        f"    code = end.code\nprint('HEAVY', json.dumps([name for name in {HEAVY!r} if name in sys.modules]))\nsys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, cwd=ROOT, env=os.environ | environment, check=False
    )
    line = next(line for line in done.stdout.splitlines() if line.startswith("HEAVY"))
    return done.returncode, json.loads(line.removeprefix("HEAVY")), done.stdout


def test_help_loads_nothing_heavy() -> None:
    code, heavy, out = loaded_by(["--help"])
    assert (code, heavy) == (0, [])
    assert all(command in out for command in COMMANDS)
    assert all(f"{number.value} " in out for number in ExitCode)


def test_validating_a_bad_file_loads_nothing_heavy(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: a\nprivacy: {epsilom: 3}\n", encoding="utf-8")
    code, heavy, _ = loaded_by(["validate", str(bad)])
    assert (code, heavy) == (ExitCode.BAD_INPUT, [])


def test_completion_loads_nothing_heavy() -> None:
    words = {"COMP_WORDS": "wardround-sim validate quick", "COMP_CWORD": "2", "_WARDROUND_SIM_COMPLETE": "complete_bash"}
    code, heavy, out = loaded_by([], **words)
    assert (code, heavy) == (0, [])
    assert "quickstart" in out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == ExitCode.DONE
    text = capsys.readouterr().out
    assert f"Example: wardround-sim {command}" in text
    assert "--json" in text


def test_a_good_study_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["validate", "quickstart", "--json"]) == ExitCode.DONE
    facts = json.loads(capsys.readouterr().out)
    assert facts["valid"] is True
    assert facts["study_id"] == load_study(find_study("quickstart")).id


def test_a_bad_study_names_its_problems(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("name: a\nprivacy:\n  epsilom: 3\n", encoding="utf-8")
    assert cli.main(["validate", str(bad), "--json"]) == ExitCode.BAD_INPUT
    captured = capsys.readouterr()
    assert json.loads(captured.out)["problems"] == captured.err.splitlines()
    assert captured.err.startswith(f"{bad}:3: privacy.epsilom: unknown key")


@pytest.mark.parametrize("study", ["nothing-like-it.yaml", ".", "latin.yaml"])
def test_a_file_that_cannot_be_read_is_json_as_well(
    study: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: \xe9\n")
    assert cli.main(["validate", study, "--json"]) == ExitCode.BAD_INPUT
    captured = capsys.readouterr()
    facts = json.loads(captured.out)
    assert (facts["valid"], facts["study_id"]) == (False, None)
    assert facts["problems"] == captured.err.splitlines() and len(facts["problems"]) == 1


@pytest.mark.parametrize(
    ("command", "words"), [("run", "A study file, or the name"), ("compare", "Folders of finished"), ("describe", "An npz file")]
)
def test_help_says_what_an_argument_is(command: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main([command, "--help"])
    arguments = capsys.readouterr().out.partition("Arguments")[2].partition("Options")[0]
    assert words in " ".join(arguments.replace("│", " ").split())


def test_a_study_without_privacy_is_announced_loudly(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["validate", "chest-xray"])
    assert "NO PRIVACY" in capsys.readouterr().err
    cli.main(["validate", "quickstart"])
    assert "NO PRIVACY" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run"], "--resume DIR"),
        (["run", "quikstart"], "did you mean quickstart?"),
        (["run", "nothing-like-it"], "one of chest-xray"),
        (["run", "quickstart", "--seeds", "0,x"], "--seeds"),
        (["run", "quickstart", "--seeds", "1,1"], "different"),
        (["run", "quickstart", "--device", "tpu"], "cuda:0"),
        (["run", "quickstart", "--workers", "0"], "--workers"),
        (["run", "quickstart", "--engine", "spark"], "--engine"),
        (["run", "--resume", "nowhere"], "no such folder"),
        (["run", "quickstart", "--resume", "."], "leave out STUDY"),
        (["run", "--resume", ".", "--sites", "3"], "leave out --sites"),
        (["compare", "nowhere"], "no finished run"),
        (["describe", "nowhere.npz"], "no such file"),
        (["plan", "quickstart", "--patients", "0"], "--patients"),
    ],
)
def test_bad_input_is_said_and_starts_nothing(
    arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == ExitCode.BAD_INPUT
    captured = capsys.readouterr()
    assert words in " ".join(captured.err.replace("│", " ").split())
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_never_written_into(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("x", encoding="utf-8")
    assert cli.main(["run", "quickstart", "--out", str(tmp_path)]) == ExitCode.BAD_INPUT
    assert f"--resume {tmp_path}" in capsys.readouterr().err


def test_run_folders_have_the_study_the_time_and_four_digits() -> None:
    study = load_study(find_study("quickstart"))
    names = {options.new_run_folder(study, None).as_posix() for _ in range(20)}
    assert len(names) == 20
    for name in names:
        stem, day, clock, digits = name.rsplit("-", 3)
        assert stem == "runs/quickstart"
        assert (len(day), len(clock), len(digits)) == (8, 6, 4)
        int(digits, 16)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Runner], list[RunOptions]]:
    """Puts a stand-in for the engine under the command line; what the engine does is tested elsewhere."""
    from simulations import run as run_module

    def install(work: Runner) -> list[RunOptions]:
        asked: list[RunOptions] = []

        def run_study(given: RunOptions, listeners: tuple[Any, ...]) -> list[RunOutcome]:
            asked.append(given)
            return work(given, listeners)

        monkeypatch.setattr(run_module, "run_study", run_study)
        return asked

    return install


def outcome(given: RunOptions, seed: int = 0, private: bool = True) -> RunOutcome:
    return RunOutcome(given.out, given.out / "report.html", sample_run(seed=seed, private=private, rounds=2))


def test_options_reach_the_engine(engine: Callable[[Runner], list[RunOptions]], tmp_path: Path) -> None:
    asked = engine(lambda given, listeners: [outcome(given)])
    places = ["--data", "d.npz", "--sites", "3", "--partition", "iid", "--out", str(tmp_path / "r")]
    machine = ["--workers", "2", "--threads", "1", "--engine", "ray", "--device", "cpu", "--seeds", "0,5"]
    assert cli.main(["run", "quickstart", *places, *machine]) == ExitCode.DONE
    given = asked[0]
    assert (given.data, given.sites, given.partition, given.workers, given.threads) == (Path("d.npz"), 3, "iid", 2, 1)
    assert (given.engine, given.device, given.seeds, given.out) == ("ray", "cpu", (0, 5), tmp_path / "r")
    assert given.command.startswith("wardround-sim ")


def test_run_prints_exactly_one_object(
    engine: Callable[[Runner], list[RunOptions]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine(lambda given, listeners: [outcome(given)])
    cli.main(["run", "quickstart", "--json", "--out", str(tmp_path / "r")])
    facts = json.loads(capsys.readouterr().out)
    result = sample_run(rounds=2)
    keys = ["study_id", "run_dir", "report", "sites", "rounds", "auroc", "epsilon", "epsilon_held_out", "epsilon_target", "seconds"]
    assert list(facts) == keys
    assert "private" in facts["auroc"]
    assert (facts["sites"], facts["rounds"]) == (len(result.sites), result.rounds)
    alone = [model.metrics["auroc"] for model in result.alone.values()]
    assert facts["auroc"]["best_site"] == max(value for value in alone if value is not None)
    assert facts["auroc"]["federated"] == result.federated.metrics["auroc"]
    assert facts["epsilon"] == {site.name: site.epsilon for site in result.sites}


def test_several_seeds_give_mean_and_deviation(
    engine: Callable[[Runner], list[RunOptions]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine(lambda given, listeners: [outcome(given, seed) for seed in given.seeds])
    cli.main(["run", "quickstart", "--json", "--seeds", "0,1", "--out", str(tmp_path / "r")])
    facts = json.loads(capsys.readouterr().out)
    first, second = (run["auroc"]["federated"] for run in facts["runs"])
    assert facts["auroc"]["federated"] == pytest.approx((first + second) / 2)
    assert facts["auroc_sd"]["federated"] == pytest.approx(abs(first - second) / 2**0.5)


def test_people_get_a_table_and_the_report(
    engine: Callable[[Runner], list[RunOptions]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine(lambda given, listeners: [outcome(given)])
    cli.main(["run", "quickstart", "--out", str(tmp_path / "r")])
    out = capsys.readouterr().out
    for words in (
        "all data in one place",
        "best site alone",
        "mean site alone",
        "federated",
        "ε spent",
        f"report: {tmp_path / 'r' / 'report.html'}",
    ):
        assert words in out, words


def test_no_privacy_is_another_study_and_loud(
    engine: Callable[[Runner], list[RunOptions]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = engine(lambda given, listeners: [outcome(given, private=False)])
    cli.main(["run", "quickstart", "--no-privacy", "--json", "--out", str(tmp_path / "r")])
    captured = capsys.readouterr()
    original = load_study(find_study("quickstart"))
    assert not asked[0].study.is_private
    assert asked[0].study.id != original.id
    assert asked[0].study.with_changes({"privacy": original.privacy.model_dump(mode="json")}) == original
    assert "NO PRIVACY" in captured.err
    assert json.loads(captured.out)["epsilon_target"] is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_says_how_to_go_on(
    engine: Callable[[Runner], list[RunOptions]], number: signal.Signals, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(given: RunOptions, listeners: tuple[Any, ...]) -> list[RunOutcome]:
        given.out.mkdir()
        (given.out / "request.json").touch()
        os.kill(os.getpid(), number)
        raise AssertionError("the signal did not arrive")

    engine(stopped)
    handler = signal.getsignal(signal.SIGTERM)
    assert cli.main(["run", "quickstart", "--out", str(tmp_path / "my run")]) == ExitCode.INTERRUPTED
    assert f"wardround-sim run --resume '{tmp_path / 'my run'}'" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.parametrize(("error", "code"), [(InputError("x"), ExitCode.BAD_INPUT), (FederationError("x"), ExitCode.FEDERATION)])
def test_errors_of_the_engine_keep_their_codes(
    engine: Callable[[Runner], list[RunOptions]], error: Exception, code: ExitCode, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(given: RunOptions, listeners: tuple[Any, ...]) -> list[RunOutcome]:
        raise error

    engine(failing)
    assert cli.main(["run", "quickstart", "--json", "--out", str(tmp_path / "r")]) == code
    assert capsys.readouterr().out == ""


def test_compare_reads_runs_and_their_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, seed in (("one", 0), ("many/seed-1", 1), ("many/seed-2", 2)):
        sample_run(seed=seed, rounds=2).write(tmp_path / name / "results.json")
    report = tmp_path / "c.html"
    assert cli.main(["compare", str(tmp_path / "one"), str(tmp_path / "many"), "--out", str(report), "--json"]) == ExitCode.DONE
    facts = json.loads(capsys.readouterr().out)
    assert [run["seed"] for run in facts["runs"]] == [0, 1, 2]
    assert report.stat().st_size > 1000


def test_compare_names_every_folder_that_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "results.json").write_text("{}", encoding="utf-8")
    assert cli.main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "c.html")]) == ExitCode.BAD_INPUT
    problems = capsys.readouterr().err
    assert "a: no finished run" in problems
    assert "results.json: is damaged" in problems


def test_doctor_says_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["doctor", "--json"])
    facts = json.loads(capsys.readouterr().out)
    names = [check["name"] for check in facts["checks"]]
    assert {"Python", "torch", "flwr", "opacus", "device", "threads", "memory", "disk here", "disk of the cache"} <= set(names)
    assert code == (ExitCode.DONE if facts["good"] else ExitCode.BAD_INPUT)
    assert facts["good"] == all(not check["remedy"] for check in facts["checks"])
