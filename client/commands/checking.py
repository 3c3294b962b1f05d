# SPDX-License-Identifier: Apache-2.0
"""Commands of hospital IT: check."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from client.checks import Result


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: wardround-client check --home /srv/wardround")(check)


def check(
    home: Annotated[
        Path | None, typer.Option("--home", metavar="DIR", help="The site's folder (default: WARDROUND_SITE, else the current folder).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")] = False,
) -> None:
    """Test everything that this site needs, one line each. The exit code is that of the first failure.

    Settings, keys, certificate, the way to the coordinator (name, proxy, TLS, clock), disk, device, data, cohorts, ledger and egress log.
    """
    from client.checks import Doctor, State, all_checks, examine
    from client.site_home import SiteHome

    with closing(Doctor(SiteHome.find(home))) as doctor:
        results = list(_shown(examine(doctor, all_checks()), quiet=as_json))
    failed = [result for result in results if result.state is State.FAILED]
    if as_json:
        lines = [{"name": result.name, "state": result.state.value, "text": result.text} for result in results]
        print(json.dumps({"ok": not failed, "checks": lines}, ensure_ascii=False))
    if failed:
        raise typer.Exit(failed[0].exit_code)


def _shown(results: Iterable[Result], quiet: bool) -> Iterable[Result]:
    """Each result, printed as soon as it is there."""
    for result in results:
        if not quiet:
            print(f"{result.state.value:<10}  {result.name:<11}  {result.text}", flush=True)
        yield result
