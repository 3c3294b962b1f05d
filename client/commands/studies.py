# SPDX-License-Identifier: Apache-2.0
"""Commands of hospital IT: studies, approve, reject, budget."""

from __future__ import annotations

import getpass
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from client.offers import Offer
    from client.site_home import SiteHome
    from common.federation import ApprovalRecord

HomeOption = Annotated[
    Path | None, typer.Option("--home", metavar="DIR", help="The site's folder (default: WARDROUND_SITE, else the current folder).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")]
StudyArgument = Annotated[str, typer.Argument(metavar="ID", help="The study, or the start of its id.")]
ByOption = Annotated[str | None, typer.Option("--by", metavar="NAME", help="Who decides (default: the user's name).")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog="Example: wardround-client studies --home /srv/wardround")(studies)
    app.command(epilog="Example: wardround-client approve 3fa9c1 --cohort chest --home /srv/wardround")(approve)
    app.command(epilog="Example: wardround-client reject 3fa9c1 --home /srv/wardround")(reject)
    app.command(epilog="Example: wardround-client budget --home /srv/wardround")(budget)


def studies(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """The studies that the coordinator offers, and what this site has decided. Asks the coordinator for new ones."""
    from client.offers import offers
    from client.site_home import SiteHome

    site = SiteHome.find(home)
    _fetch_offers(site)
    facts = [_offer_facts(site, offer) for offer in offers(site)]
    if as_json:
        print(json.dumps({"studies": facts}, ensure_ascii=False))
    else:
        _print_studies(facts)


def approve(
    study: StudyArgument,
    cohort: Annotated[
        str | None, typer.Option("--cohort", help="Cohort of site.yaml that the study may use (default: the only one).")
    ] = None,
    runs: Annotated[int, typer.Option("--runs", help="How many runs, besides those that began here before.")] = 1,
    by: ByOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a study work here: shows what it does, what leaves and what it costs, asks, and promises it its budget.

    A study that has run here is approved for further runs, with --runs 0 for those that began. Exit code 3: policy or budget forbid it.
    """
    from client.approving import approve as do
    from client.approving import propose
    from client.site_home import SiteHome
    from client.study_words import in_words

    site = SiteHome.find(home)
    proposal = propose(site, study, cohort, runs, time.time())
    print(in_words(proposal), file=sys.stderr if as_json else sys.stdout)
    if not yes:
        typer.confirm("\nApprove?", abort=True, err=as_json)
    record = do(site, proposal, by or getpass.getuser(), time.time())
    _tell(site, record, as_json, f"Approved: {record.runs} run(s) in total of study {record.study_id[:12]} on {record.cohort}.")


def reject(study: StudyArgument, by: ByOption = None, home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Say no to a study, also to one that was approved: nothing of it works here any more, and its unspent budget is free again."""
    from client.approving import reject as do
    from client.site_home import SiteHome

    site = SiteHome.find(home)
    record = do(site, study, by or getpass.getuser(), time.time())
    _tell(site, record, as_json, f"Rejected: study {record.study_id[:12]}. What it has spent here stays spent.")


def budget(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """What each account of patients has spent, what studies were promised, and what is left."""
    from client.commands import ledger
    from client.site_home import SiteHome

    site = SiteHome.find(home)
    facts = ledger.show(site.folder)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        _print_budget(site, facts)


def _fetch_offers(site: SiteHome) -> None:
    """What the coordinator offers now; when it cannot be asked, what is stored is shown, with a word about it."""
    from client.coordinator import Coordinator
    from client.offers import store_offer
    from common.errors import WardroundError

    try:
        with Coordinator(site) as coordinator:
            found = coordinator.studies()
    except WardroundError as error:
        print(f"The coordinator cannot be asked now, so this is what was stored: {error}", file=sys.stderr)
        return
    for offer in found:
        try:
            store_offer(site, offer)
        except WardroundError as error:
            print(f"An offer is left out: {error}", file=sys.stderr)


def _offer_facts(site: SiteHome, offer: Offer) -> dict[str, Any]:
    from client.approvals import Approvals
    from client.study_words import privacy_in_words

    approvals = Approvals(site)
    decided = approvals.current(offer.study.id)
    return {
        "study": offer.study.id,
        "name": offer.study.name,
        "description": offer.study.description,
        "purpose": offer.study.purpose,
        "task": offer.study.task,
        "model": offer.study.model.name,
        "privacy": privacy_in_words(offer.study),
        "run": offer.start.run_id,
        "sites": list(offer.start.sites),
        "expires": offer.start.expires,
        "expired": time.time() > offer.start.expires,
        "decision": decided.decision if decided else None,
        "cohort": decided.cohort if decided else None,
        "runs_approved": decided.runs if decided else 0,
        "runs_begun": len(approvals.runs(offer.study.id)),
        "told": approvals.is_delivered(offer.study.id),
    }


def _print_studies(facts: list[dict[str, Any]]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not facts:
        console.print("No study was offered yet.")
        return
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("study", "name", "model", "privacy", "sites", "here", "runs"):
        table.add_column(column)
    for one in facts:
        here = one["decision"] or ("offer expired" if one["expired"] else "waits for you")
        if one["decision"] and not one["told"]:
            here += " (coordinator not told)"
        runs = f"{one['runs_begun']} of {one['runs_approved']}" if one["decision"] else ""
        model = "survey" if one["purpose"] == "survey" else one["model"]
        table.add_row(one["study"][:12], one["name"], model, one["privacy"], ", ".join(one["sites"]), here, runs)
    console.print(table)
    if any(one["decision"] is None and not one["expired"] for one in facts):
        console.print("`wardround-client approve ID` shows what a study does and asks.", soft_wrap=True)


def _print_budget(site: SiteHome, facts: dict[str, Any]) -> None:
    from rich.console import Console

    from client.commands import ledger
    from client.offers import offers

    console = Console(highlight=False)
    if not facts["accounts"]:
        console.print("Nothing was spent or promised yet: no patients are registered.")
        return
    ledger.print_accounts(facts, console)
    names = {offer.study.id: offer.study.name for offer in offers(site)}
    for account in facts["accounts"]:
        for one in account["promised"]:
            name = f"{names.get(one['study'], 'study')} ({one['study'][:12]})"
            console.print(
                f"{name}: {one['count']} of {one['of']} releases to come on {account['account'][:8]}, {account['line']}.", soft_wrap=True
            )


def _tell(site: SiteHome, record: ApprovalRecord, as_json: bool, text: str) -> None:
    """Hand the decision in, and print it. It holds here in any case; the daemon hands it in later if it cannot be done now."""
    from client.approvals import Approvals
    from client.coordinator import Coordinator
    from common.errors import WardroundError

    try:
        with Coordinator(site) as coordinator:
            Approvals(site).deliver(coordinator.approve)
    except WardroundError as error:
        print(f"The coordinator does not know it yet; the daemon tells it when it can: {error}", file=sys.stderr)
    told = Approvals(site).is_delivered(record.study_id)
    if as_json:
        print(json.dumps({**record.model_dump(mode="json"), "told": told}, ensure_ascii=False))
    else:
        print(text if not told else f"{text} The coordinator knows it.")
