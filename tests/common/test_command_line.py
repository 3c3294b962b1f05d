# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from common.command_line import run_app
from common.errors import (
    ExitCode,
    FederationError,
    InputError,
    ProtocolError,
    RefusedError,
    RunInterrupted,
    StorageError,
    StudyError,
    WardroundError,
)


def app_that(raises: BaseException) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def work(number: int = 0) -> None:
        raise raises

    return app


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (WardroundError("x"), ExitCode.INTERNAL),
        (InputError("x"), ExitCode.BAD_INPUT),
        (StudyError(["x", "y"]), ExitCode.BAD_INPUT),
        (RefusedError("X", "x"), ExitCode.REFUSED),
        (RunInterrupted("x"), ExitCode.INTERRUPTED),
        (ProtocolError("x"), ExitCode.PROTOCOL),
        (StorageError("x"), ExitCode.STORAGE),
        (FederationError("x"), ExitCode.FEDERATION),
        (KeyboardInterrupt(), ExitCode.INTERRUPTED),
        (typer.Abort(), ExitCode.INTERRUPTED),
        (typer.Exit(3), ExitCode.REFUSED),
    ],
)
def test_each_error_has_its_exit_code_and_no_traceback(error: BaseException, code: ExitCode, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app_that(error), "tool", []) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err


def test_problems_stand_alone_on_their_lines(capsys: pytest.CaptureFixture[str]) -> None:
    run_app(app_that(InputError(["s.yaml:1: a", "s.yaml:2: b"])), "tool", [])
    assert capsys.readouterr().err.splitlines() == ["s.yaml:1: a", "s.yaml:2: b", "tool: 2 problems"]


def test_notes_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    error = StorageError("disk full")
    error.add_note("continue with: tool --resume x")
    run_app(app_that(error), "tool", [])
    assert capsys.readouterr().err.splitlines() == ["tool: disk full", "tool: continue with: tool --resume x"]


def test_wrong_options_are_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app_that(InputError("x")), "tool", ["--number", "many"]) == ExitCode.BAD_INPUT
    assert "--number" in capsys.readouterr().err


def test_a_fault_of_ours_is_named_and_logged_but_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WARDROUND_CACHE", str(tmp_path))
    assert run_app(app_that(ZeroDivisionError("patient 42")), "tool", []) == ExitCode.INTERNAL
    shown = capsys.readouterr().err
    (log,) = (tmp_path / "logs").iterdir()
    assert "ZeroDivisionError" in shown
    assert str(log) in shown
    assert "patient 42" not in shown
    assert "patient 42" in log.read_text(encoding="utf-8")


PRINTER = (
    "import sys, typer\nfrom rich.console import Console\nfrom common.command_line import run_app\napp = typer.Typer()\n"
    "@app.command()\ndef work(pretty: bool = False) -> None:\n    show = Console().print if pretty else print\n"
    "    for number in range(3000): show(f'{number:060}')\nsys.exit(run_app(app, 'tool', sys.argv[1:]))"
)
ROOT = Path(__file__).resolve().parents[2]
WAYS = pytest.mark.parametrize("way", [[], ["--pretty"], ["--help"]], ids=["print", "rich", "help"])


@WAYS
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_went_away_is_no_drama(way: list[str], unbuffered: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-c", PRINTER, *way]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (ExitCode.DONE, "")


@WAYS
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_an_output_that_cannot_be_written_is_named(way: list[str], unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-c", PRINTER, *way]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, env=environment, check=False)
    assert done.returncode == ExitCode.STORAGE
    assert done.stderr == "tool: cannot write the output (No space left on device); free some space, or send it somewhere else\n"


def test_an_exit_of_another_kind_passes() -> None:
    with pytest.raises(SystemExit, match="5"):
        run_app(app_that(SystemExit(5)), "tool", [])
