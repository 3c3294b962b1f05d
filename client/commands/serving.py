# SPDX-License-Identifier: Apache-2.0
"""Commands of hospital IT: start, status, pause, resume."""

from __future__ import annotations

import getpass
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from client.site_home import SiteHome

HomeOption = Annotated[
    Path | None, typer.Option("--home", metavar="DIR", help="The site's folder (default: WARDROUND_SITE, else the current folder).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    for command in (start, status, pause, resume):
        app.command(epilog=f"Example: wardround-client {command.__name__} --home /srv/wardround")(command)


def start(
    home: HomeOption = None,
    code: Annotated[
        str | None, typer.Option("--code", metavar="WORDS", help="The twelve words as the coordinator reads them out; the first time only.")
    ] = None,
) -> None:
    """Take part in studies, until Ctrl-C or SIGTERM: one daemon, outbound connections only; its figures are served on loopback.

    Until the coordinator has approved this site it waits. Nothing trains that was not approved here. What happens is said on the
    terminal and in logs/daemon.log. A round that is cut off by stopping is lost; `pause` first, and none is.
    """
    from client.daemon import serve
    from client.site_config import SiteConfig
    from client.site_home import SiteHome
    from common.crypto.site_keys import SiteKeys

    site = SiteHome.find(home)
    SiteConfig.read(site.config)
    SiteKeys.read(site.folder)
    _compare_words(site, code)
    serve(site, sys.stderr)


def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """What the daemon does, and what waits for somebody."""
    from client.site_home import SiteHome

    facts = status_facts(SiteHome.find(home), time.time())
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        print("\n".join(_lines(facts)))


def pause(home: HomeOption = None) -> None:
    """Train nothing from now on; a round that is being trained ends first. The site stays connected and answers PAUSED."""
    from client.site_home import SiteHome
    from common.crypto.private_files import write_new

    site = SiteHome.find(home)
    record = json.dumps({"since": time.time(), "by": getpass.getuser()})
    print("paused" if write_new(site.paused, record.encode()) else "it is paused already")


def resume(home: HomeOption = None) -> None:
    """Train again."""
    from client.site_home import SiteHome
    from common.errors import StorageError

    site = SiteHome.find(home)
    try:
        site.paused.unlink()
    except FileNotFoundError:
        print("it is not paused")
    except OSError as error:
        raise StorageError(f"{site.paused}: cannot be removed ({error.strerror}); check the folder's permissions") from error
    else:
        print("goes on")


def status_facts(site: SiteHome, now: float) -> dict[str, Any]:
    """What `status` shows. Raises InputError, StorageError for files that cannot be read."""
    from client.own_certificate import read_own
    from client.status import DaemonState, Stage, is_running
    from common.crypto.certificates import not_after

    state, running, own = DaemonState.read(site), is_running(site), read_own(site)
    stage = state.stage if state is not None and running else Stage.STOPPED
    invitation = site.read_invitation()
    return {
        "site": invitation.site,
        "coordinator": invitation.url,
        "running": running,
        "stage": stage.value,
        "since": state.since if state is not None and running else None,
        "pid": state.pid if state is not None and running else None,
        "paused": site.paused.exists(),
        "study": state.study_id if state is not None and stage is Stage.WORKING else None,
        "run": state.run_id if state is not None and stage is Stage.WORKING else None,
        "round": state.round if state is not None and stage is Stage.WORKING else None,
        "messages_answered": state.rounds_answered if state is not None else 0,
        "studies_to_decide": _undecided(site),
        "certificate_days": None if own is None else round((not_after(own) - now) / 86400, 1),
        "last_error": state.last_error if state is not None else None,
        "last_error_at": state.last_error_at if state is not None else None,
        "crashed": state is not None and not running and state.stage is not Stage.STOPPED,
    }


def _undecided(site: SiteHome) -> int:
    """Studies that were offered and that nobody has approved or rejected."""
    from client.approvals import Approvals
    from client.offers import offers

    approvals = Approvals(site)
    return len({offer.study.id for offer in offers(site) if approvals.current(offer.study.id) is None})


def _lines(facts: dict[str, Any]) -> list[str]:
    lines = [
        f"{facts['site']} at {facts['coordinator']}: {facts['stage']}" + (f" since {_clock(facts['since'])}" if facts["since"] else "")
    ]
    if facts["crashed"]:
        lines.append("the daemon ended without stopping; start it again with `wardround-client start`")
    if facts["paused"]:
        lines.append("paused: nothing trains until `wardround-client resume`")
    if facts["round"] is not None:
        lines.append(f"round {facts['round']} of study {facts['study'][:12]}, run {facts['run'][:12]}")
    if facts["studies_to_decide"]:
        lines.append(f"{facts['studies_to_decide']} studies wait for a decision: `wardround-client studies`")
    if facts["certificate_days"] is not None:
        lines.append(f"certificate: {facts['certificate_days']:g} days left")
    if facts["last_error"]:
        lines.append(f"last problem, {_clock(facts['last_error_at'])}: {facts['last_error']}")
    return lines


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def _compare_words(site: SiteHome, code: str | None) -> None:
    """Before the first start the twelve words of both ends have to be the same. Raises InputError."""
    from client.enrol import confirm, is_confirmed
    from common.errors import InputError

    if code is None and is_confirmed(site):
        return
    if code is None:
        if not sys.stdin.isatty():
            raise InputError(
                "the twelve words were not compared yet: call the coordinator on a number that you know, and start once with "
                "--code 'word word …', the words as they are read out to you"
            )
        print("Call the coordinator on a number that you know, and type the twelve words that are read out to you.", file=sys.stderr)
        code = str(typer.prompt("Words", err=True))
    confirm(site, code)
