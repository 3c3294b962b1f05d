# SPDX-License-Identifier: Apache-2.0
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


def test_a_reader_that_went_away_is_no_drama() -> None:
    program = (
        "import sys, typer\nfrom common.command_line import run_app\napp = typer.Typer()\n"
        "@app.command()\ndef work() -> None:\n    for number in range(100_000): print(number)\nsys.exit(run_app(app, 'tool', []))"
    )
    root = Path(__file__).resolve().parents[2]
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == ExitCode.INTERNAL
