# SPDX-License-Identifier: Apache-2.0
"""Whether a command line of ours, as a page or a unit shows it, is one that exists."""

from __future__ import annotations

import shlex
from typing import Any

import click
import typer

from client.cli import app as client_app
from server.cli import app as server_app

PROGRAMS = {"wardround-server": server_app, "wardround-client": client_app}


def problem(line: str) -> str:
    """What is wrong with `wardround-… command options`: no such command or option, an argument too many or missing; "" if nothing is.

    Nothing is run. Words in capitals, as pages show them, are arguments like any other.
    """
    program, *words = shlex.split(line, comments=True)
    context = click.Context(_command(program), info_name=program)
    try:
        while isinstance(context.command, click.Group):
            name, command, words = context.command.resolve_command(context, words)
            if command is None:
                return f"{line}: no such command"
            context = click.Context(command, info_name=name, parent=context)
        context.command.parse_args(context, list(words))
    except click.UsageError as error:
        return f"{line}: {error.format_message()}"
    return ""


def _command(program: str) -> Any:
    return typer.main.get_command(PROGRAMS[program])
