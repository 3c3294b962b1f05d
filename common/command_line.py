# SPDX-License-Identifier: Apache-2.0
"""The process edge of every Wardround command: runs a typer app and turns whatever happens into an exit code.

Messages go to stderr, so stdout holds results only. What was raised on purpose is shown as its message; anything else is a fault of
ours: its class name is shown, its traceback goes to a local log file and nowhere else.
"""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TextIO, cast, get_type_hints

import click
import typer
from typer.main import get_command
from typer.models import ArgumentInfo

from common.errors import ExitCode, InputError, StorageError, WardroundError
from common.files import cache_folder

_INTERRUPTED_BY_TYPER = 130


def run_app(app: typer.Typer, name: str, arguments: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return its exit code.

    A reader of stdout that went away (`| head`) is no failure: the work is done, what is left to print goes nowhere.
    """
    command = get_command(app)
    _restore_argument_help(command)
    try:
        with redirect_stdout(cast(TextIO, _Output(sys.stdout))) as output:
            status = _finished(command.main(args=arguments, prog_name=name, standalone_mode=False))
            output.flush()
    except click.ClickException as error:
        from typer.rich_utils import rich_format_error

        rich_format_error(error)
        status = ExitCode.BAD_INPUT
    except WardroundError as error:
        if isinstance(error, OutputError):
            _drop_stdout()
        _say(name, error)
        status = error.exit_code
    except (KeyboardInterrupt, click.Abort):
        status = ExitCode.INTERRUPTED
    except BrokenPipeError:
        _drop_stdout()
        status = ExitCode.DONE
    except SystemExit as end:  # what click and rich make of a broken pipe
        if not isinstance(end.__context__, OSError) or end.__context__.errno != errno.EPIPE:
            raise
        _drop_stdout()
        status = ExitCode.DONE
    except Exception as error:
        with _crash_log(name) as (log, path):
            log.exception("%s failed: %s", name, sys.argv[1:])
        _print(f"{name}: an error inside Wardround ({type(error).__name__}); the details are in {path}")
        status = ExitCode.INTERNAL
    return int(status)


def _finished(returned: object) -> int:
    """What typer handed back: None, the code of an Exit, or 130 for Ctrl-C."""
    if not isinstance(returned, int):
        return ExitCode.DONE
    return ExitCode.INTERRUPTED if returned == _INTERRUPTED_BY_TYPER else returned


class OutputError(StorageError):
    """What a command prints could not be written."""


class _Output(io.TextIOBase):
    """Standard output that says so when it cannot be written: a full disk behind `>` is no fault of ours."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding

    def write(self, text: str) -> int:
        with _output_errors():
            return self._stream.write(text)

    def flush(self) -> None:
        with _output_errors():
            self._stream.flush()

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def writable(self) -> bool:
        return True


@contextmanager
def _output_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"cannot write the output ({error.strerror or error}); free some space, or send it somewhere else") from error


def _restore_argument_help(command: click.Command) -> None:
    """Give arguments the help that they were declared with: since click 8.5 its own constructor overwrites what typer set."""
    for inner in getattr(command, "commands", {}).values():
        _restore_argument_help(inner)
    declared = get_type_hints(command.callback, include_extras=True) if command.callback else {}
    for parameter in command.params:
        for info in getattr(declared.get(parameter.name or ""), "__metadata__", ()):
            if isinstance(info, ArgumentInfo) and not getattr(parameter, "help", None):
                parameter.help = info.help


def _say(name: str, error: WardroundError) -> None:
    """The message of an error; each problem of an input stands alone on its line, so that editors find file and line."""
    if isinstance(error, InputError):
        for problem in error.problems:
            _print(problem)
        if len(error.problems) > 1:
            _print(f"{name}: {len(error.problems)} problems")
    else:
        _print(f"{name}: {error}")
    for note in getattr(error, "__notes__", ()):
        _print(f"{name}: {note}")


def _print(text: str) -> None:
    print(text, file=sys.stderr)


def _drop_stdout() -> None:
    """Nobody reads any more: what is still in the buffer goes nowhere, without a complaint at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def _crash_log(name: str) -> Iterator[tuple[logging.Logger, Path]]:
    """A logger that writes one file in the cache folder, or in the temporary folder when that cannot be written."""
    path = _log_folder() / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    handler = logging.FileHandler(path, encoding="utf-8")
    log = logging.Logger(name)
    log.addHandler(handler)
    try:
        yield log, path
    finally:
        handler.close()


def _log_folder() -> Path:
    folder = cache_folder() / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return Path(tempfile.gettempdir())
    return folder if os.access(folder, os.W_OK) else Path(tempfile.gettempdir())
