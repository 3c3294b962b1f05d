# SPDX-License-Identifier: Apache-2.0
"""`python -m server.gateway --home DIR`: the gateway in the foreground, until SIGTERM. `wardround-server up` starts it."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from common.command_line import run_app
from server.home import HOME_VARIABLE, ServerHome

app = typer.Typer(pretty_exceptions_enable=False)


@app.command()
def main(home: Annotated[Path | None, typer.Option(envvar=HOME_VARIABLE, help="The coordinator's folder.")] = None) -> None:
    """Serve the gateway of a coordinator's folder."""
    from server.gateway.serving import run_gateway

    os.umask(0o077)
    run_gateway(ServerHome.find(home))


if __name__ == "__main__":
    sys.exit(run_app(app, "wardround-gateway"))
