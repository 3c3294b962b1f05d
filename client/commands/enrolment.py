# SPDX-License-Identifier: Apache-2.0
"""Commands of hospital IT: init."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from client.site_home import SiteHome

HomeOption = Annotated[
    Path | None, typer.Option("--home", metavar="DIR", help="The site's folder (default: WARDROUND_SITE, else the current folder).")
]
InvitationOption = Annotated[
    Path | None, typer.Option("--invitation", metavar="FILE", help="The file that the coordinator sent; needed the first time.")
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: wardround-client init --invitation north.json --home /srv/wardround")(init)


def init(
    invitation: InvitationOption = None,
    home: HomeOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")] = False,
) -> None:
    """Join a federation: make this site's folder, keys and policy file, and ask the coordinator to be enrolled.

    Safe to run again: keys and site.yaml stay as they are, the same request is sent again, and once the coordinator has approved it the
    certificate is fetched. No private key leaves this machine.
    """
    from client.coordinator import Coordinator
    from client.enrol import confirmation_words, is_confirmed, prepare, read_invitation_file, send_request
    from client.site_home import SiteHome

    site = SiteHome.at(home)
    found = site.read_invitation() if invitation is None else read_invitation_file(invitation)
    prepare(site, found, time.time())
    with Coordinator(site) as coordinator:
        answer = send_request(site, coordinator, time.time())
    words, confirmed = confirmation_words(site), is_confirmed(site)
    if as_json:
        facts = {"site": found.site, "home": str(site.folder), "status": answer.status, "words": words, "confirmed": confirmed}
        print(json.dumps(facts, ensure_ascii=False))
    else:
        print(_next_steps(site, found.site, words, answer.status, confirmed))


def _next_steps(site: SiteHome, name: str, words: str, status: str, confirmed: bool) -> str:
    approved = status == "approved"
    state = "The coordinator has approved this site; its certificate is here." if approved else "The coordinator has this site's request."
    steps = [
        f"Call the coordinator on a number that you know, and read the twelve words of {name} to each other; they have to be the same.",
        f"Describe your data and your rules:\n   {site.config}",
        f"Start the client, which asks for the words:\n   wardround-client start --home {site.folder}",
        f"When the coordinator has approved this site, test everything:\n   wardround-client check --home {site.folder}",
    ]
    lines = [f"{number}. {step}" for number, step in enumerate(steps[1:] if confirmed else steps, 1)]
    half = len(words.split()) // 2
    first, second = " ".join(words.split()[:half]), " ".join(words.split()[half:])
    return "\n".join([state, "", f"    {first}", f"    {second}", "", *lines])
