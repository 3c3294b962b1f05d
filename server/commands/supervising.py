# SPDX-License-Identifier: Apache-2.0
"""Commands of the coordinator: up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

NAME = "wardround-server"

HomeOption = Annotated[
    Path | None, typer.Option("--home", metavar="DIR", help="The coordinator's folder (else WARDROUND_SERVER, else the current one).")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog=f"Example: {NAME} up --home /srv/wardround")(up)


def up(home: HomeOption = None) -> None:
    """Run the coordinator: Flower's server, the gateway for the hospitals, and the runs. Ctrl-C or SIGTERM stops all of it."""
    import os
    import sys

    from server.home import ServerHome
    from server.supervisor import run_until_signal

    os.umask(0o077)
    found = ServerHome.find(home)
    print(f"{NAME}: {found.settings.url}, logs in {found.logs}; `{NAME} status` says when it is ready; Ctrl-C stops it", file=sys.stderr)
    run_until_signal(found)
    print(f"{NAME}: stopped", file=sys.stderr)
