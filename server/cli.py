# SPDX-License-Identifier: Apache-2.0
"""`wardround-server`, the command line of the coordinator.

Results go to stdout (`--json`: exactly one object), messages to stderr; errors become the exit codes of `common.errors`. Each file of
`server.commands` adds its commands; nothing heavy is imported before a command needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from common.command_line import run_app
from common.errors import EXIT_CODE_HELP
from server.commands import backup, enrolment, running, supervising, surveying

NAME = "wardround-server"
_EXIT_CODES = "Exit codes: " + " · ".join(f"{code.value} {text}" for code, text in EXIT_CODE_HELP.items())

app = typer.Typer(
    name=NAME,
    help="The coordinator's side of Wardround.",
    epilog=f"Example: {NAME} init /srv/wardround --url https://coordinator.example:8443\n\n{_EXIT_CODES}",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
enrolment.register(app)
supervising.register(app)
running.register(app)
surveying.register(app)
backup.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    return run_app(app, NAME, arguments)


if __name__ == "__main__":
    sys.exit(main())
