# SPDX-License-Identifier: Apache-2.0
"""Commands of the coordinator: init, invite, sites (list, approve, revoke, renew)."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from common.crypto.certificates import Authority
    from server.home import ServerHome
    from server.sites import RegisteredSite

NAME = "wardround-server"

HomeOption = Annotated[
    Path | None, typer.Option("--home", metavar="DIR", help="The coordinator's folder (else WARDROUND_SERVER, else the current one).")
]
PassphraseOption = Annotated[
    Path | None, typer.Option("--passphrase-file", metavar="FILE", help="The passphrase of the authority's key (mode 0600), not asked for.")
]
CaKeyOption = Annotated[Path | None, typer.Option("--ca-key", metavar="FILE", help="The authority's key, if it is kept elsewhere.")]
NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The site's name.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")]

sites_app = typer.Typer(help="The sites: who is invited, waiting, approved, revoked; approve, revoke, renew.", invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog=f"Example: {NAME} init /srv/wardround --url https://coordinator.example:8443")(init)
    app.command(epilog=f"Example: {NAME} invite st-mary --home /srv/wardround --out st-mary.json")(invite)
    app.add_typer(sites_app, name="sites")


def init(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The folder to make, or to complete.")],
    url: Annotated[str, typer.Option(help="Where sites reach this coordinator: https://HOST:PORT.")],
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where the gateway listens (default: 0.0.0.0, the URL's port).")
    ] = None,
    superlink_port: Annotated[int | None, typer.Option(min=1, max=65535, help="Flower's port on loopback (default: 9092).")] = None,
    name: Annotated[list[str] | None, typer.Option(help="A further host name or address in the server's certificate; repeatable.")] = None,
    passphrase_file: PassphraseOption = None,
    ca_key: CaKeyOption = None,
) -> None:
    """Make authority, keys and state of a coordinator. Again: completes what is missing, overwrites nothing."""
    from server.founding import KeyHolder, Wanted, found
    from server.home import ServerHome

    home = ServerHome(folder.absolute())
    wanted = Wanted(url, listen, superlink_port, tuple(name or ()))
    made = found(home, wanted, KeyHolder(lambda new: _passphrase(passphrase_file, new), ca_key))
    _say(f"{home.folder}: " + (f"made {', '.join(made)}" if made else "complete, nothing was missing"))
    if "ca.key" in made:
        _say(
            "Move ca.key to a place that is not this machine: only `sites approve` and `sites renew` need it (--ca-key). Back up the "
            f"folder, and keep the passphrase apart from it.\nNext: {NAME} invite NAME --home {home.folder}"
        )


def invite(
    name: NameArgument,
    home: HomeOption = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The invitation (default: NAME-invitation.json).")] = None,
    valid_hours: Annotated[float, typer.Option(help="How long its token may be used, in hours.")] = 72.0,
) -> None:
    """Write an invitation for a site. It holds no private key and grants nothing: it lets one request in, which you approve or not."""
    from common.crypto.private_files import write_new
    from common.errors import InputError
    from server.enrolment import invite as new_invitation

    server = _found(home)
    path = out or Path(f"{name}-invitation.json")
    if path.exists() or not path.absolute().parent.is_dir():
        raise InputError(f"{path}: exists, or its folder does not; name another file with --out")
    invitation = new_invitation(server, name, valid_hours)
    if not write_new(path, (json.dumps(invitation.model_dump(), indent=1) + "\n").encode()):
        raise InputError(f"{path}: exists; name another file with --out, and invite again")
    _say(f"{path}: send it to {name}; it is good for one request until {_date(invitation.expires)}")


@sites_app.callback()
def sites(context: typer.Context, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """List the sites, with the twelve words of each request that waits."""
    context.obj = home
    if context.invoked_subcommand is not None:
        return
    facts = _facts(_found(home))
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        _print_sites(facts)


@sites_app.command(epilog=f"Example: {NAME} sites approve st-mary --home /srv/wardround")
def approve(
    context: typer.Context,
    name: NameArgument,
    home: HomeOption = None,
    code: Annotated[str | None, typer.Option(metavar="WORDS", help="The twelve words that the site read out; else asked for.")] = None,
    passphrase_file: PassphraseOption = None,
    ca_key: CaKeyOption = None,
) -> None:
    """Compare the twelve words with the site by phone, then issue its certificate."""
    from server import authority
    from server.sites import APPROVED

    server = _found(home or context.obj)
    site = authority.registry(server).by_name(name)
    if site.status != APPROVED:
        authority.confirm(server, site, code if code is not None else typer.prompt(f"The twelve words that {name} reads out", err=True))
        site = authority.admit(server, site, _authority(server, passphrase_file, ca_key))
    _say(f"{name} is approved; its certificate is good until {_date(site.not_after)}")
    if authority.register_node(server, site) is None:
        _say(f"the coordinator is not running; `{NAME} up` lets {name} in")


@sites_app.command(epilog=f"Example: {NAME} sites revoke st-mary --home /srv/wardround")
def revoke(context: typer.Context, name: NameArgument, home: HomeOption = None) -> None:
    """Shut a site out at once, also in the middle of a run; reject a request; withdraw an invitation."""
    from server import authority

    server = _found(home or context.obj)
    site = authority.registry(server).revoke(name)
    if site is None:
        _say(f"the invitation of {name} is withdrawn")
        return
    authority.unregister_node(server, site)
    _say(f"{name} is revoked: none of its certificates is accepted any more; to let it come back, invite it again")


@sites_app.command(epilog=f"Example: {NAME} sites renew --all --home /srv/wardround")
def renew(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(metavar="[NAME]…", help="Sites that get a new certificate.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every site that has asked for one.")] = False,
    home: HomeOption = None,
    passphrase_file: PassphraseOption = None,
    ca_key: CaKeyOption = None,
) -> None:
    """Issue new certificates: to sites that asked for one, or, by name, also to a site whose certificate has expired."""
    from server import authority

    server = _found(home or context.obj)
    chosen = _to_renew(server, names or [], every)
    if not chosen:
        _say("no site has asked for a new certificate")
        return
    key = _authority(server, passphrase_file, ca_key)
    for site in chosen:
        renewed = authority.renew(server, site, key)
        _say(
            f"{site.name}: new certificate until {_date(renewed.not_after)}; the site fetches it by itself, or with `wardround-client init`"
        )


def _to_renew(home: ServerHome, names: list[str], every: bool) -> list[RegisteredSite]:
    from common.errors import InputError
    from server.authority import registry

    if bool(names) == every:
        raise InputError("name the sites, or give --all for every site that has asked")
    if every:
        return [site for site in registry(home).all() if site.renewal_request is not None]
    return [registry(home).by_name(name) for name in dict.fromkeys(names)]


def _facts(home: ServerHome) -> dict[str, Any]:
    """Everything that `sites` shows, for machines."""
    from server.authority import registry

    known = registry(home)
    invitations = [{"name": entry.site, "expires": entry.expires} for entry in known.open_invitations()]
    return {"sites": [_site_facts(home, site) for site in known.all()], "invitations": invitations}


def _site_facts(home: ServerHome, site: RegisteredSite) -> dict[str, Any]:
    from server.authority import code_of

    return {
        "name": site.name,
        "status": site.status,
        "code": code_of(home, site),
        "not_after": site.not_after,
        "renewal_waiting": site.renewal_request is not None,
        "node_id": None if site.node_id is None else str(site.node_id),
        "changed": site.changed,
    }


def _print_sites(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("site", "status", "certificate until", "node", box=None, pad_edge=False)
    for site in facts["sites"]:
        status = site["status"] + (", renewal waits" if site["renewal_waiting"] else "")
        table.add_row(site["name"], status, _date(site["not_after"]), site["node_id"] or "-")
    for invitation in facts["invitations"]:
        ended = invitation["expires"] <= time.time()
        table.add_row(invitation["name"], f"invited {'(over since' if ended else '(until'} {_date(invitation['expires'])})", "-", "-")
    console = Console(highlight=False)
    console.print(table if table.row_count else f"no sites yet; {NAME} invite NAME", soft_wrap=True)
    for site in facts["sites"]:
        if site["status"] == "requested":
            console.print(
                f"\n{site['name']} waits. Have its people read these words to you, then approve:\n  {site['code']}", soft_wrap=True
            )


def _found(folder: Path | None) -> ServerHome:
    from server.home import ServerHome

    return ServerHome.find(folder)


def _authority(home: ServerHome, passphrase_file: Path | None, ca_key: Path | None) -> Authority:
    from server.authority import load_authority

    return load_authority(home, _passphrase(passphrase_file, False), ca_key)


def _passphrase(file: Path | None, new: bool) -> bytes:
    """From the file, else asked for, twice when it is chosen now."""
    from common.crypto.passphrases import ask_passphrase

    return ask_passphrase(file, "the authority's key", is_new=new)


def _date(seconds: float | None) -> str:
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def _say(text: str) -> None:
    typer.echo(text, err=True)
