# SPDX-License-Identifier: Apache-2.0
"""Commands of the coordinator: start, resume, status, runs, logs, stop, readmit."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from common.events import Event
    from server.home import ServerHome
    from server.launch import Answers

NAME = "wardround-server"
WATCH_SECONDS = 2.0

HomeOption = Annotated[
    Path | None, typer.Option("--home", metavar="DIR", help="The coordinator's folder (else WARDROUND_SERVER, else the current one).")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout, for machines.")]
WaitOption = Annotated[
    float | None,
    typer.Option("--wait-seconds", min=0, help="How long to wait for the sites' answers (default: as long as the offer is good)."),
]
DetachOption = Annotated[bool, typer.Option("--detach", help="Come back once the run has been handed over; it goes on by itself.")]
SiteArgument = Annotated[str, typer.Argument(metavar="SITE", help="The site's name.")]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, the start of it, or `last`.")]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command(epilog=f"Example: {NAME} start study.yaml --sites st-mary,st-john,st-luke")(start)
    app.command(epilog=f"Example: {NAME} resume 3fa9c1")(resume)
    app.command(epilog=f"Example: {NAME} status --watch")(status)
    app.command(epilog=f"Example: {NAME} runs --json")(runs)
    app.command(epilog=f"Example: {NAME} logs last")(logs)
    app.command(epilog=f"Example: {NAME} stop 3fa9c1")(stop)
    app.command(epilog=f"Example: {NAME} readmit 3fa9c1 st-mary")(readmit)


def start(
    study: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="The study file.")],
    sites: Annotated[str, typer.Option(metavar="A,B,C", help="The sites that are asked, by name.")],
    min_sites: Annotated[int | None, typer.Option(min=1, help="Fewest sites; may only raise the study's.")] = None,
    signing_key: Annotated[
        Path | None, typer.Option("--signing-key", metavar="FILE", help="The study-signing key, if it is kept elsewhere.")
    ] = None,
    wait_seconds: WaitOption = None,
    detach: DetachOption = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a study, offer it to the sites, wait for their approvals, and run it."""
    from common.crypto.secrets import Secret
    from common.federation import StartRecord
    from common.study_file import load_study
    from server.offers import make_offer

    server = running_coordinator(home)
    signer = Secret.read(signing_key or server.study_key).signer
    names = [name.strip() for name in sites.split(",") if name.strip()]
    signed = make_offer(server, load_study(study), names, min_sites, signer)
    record = StartRecord.model_validate_json(signed.record)
    say(f"run {record.run_id[:8]}, study {record.study_id[:12]}: offered to {', '.join(names)}; each site's IT approves it there")
    _carry_out(server, record.run_id, wait_seconds, detach, as_json)


def resume(
    run: RunArgument, wait_seconds: WaitOption = None, detach: DetachOption = False, home: HomeOption = None, as_json: JsonOption = False
) -> None:
    """Go on with a run: wait again for its sites, or continue from its last checkpoint. The sites' approvals still count."""
    from server.launch import the_offer
    from server.offers import set_withdrawn
    from server.state import State

    server = running_coordinator(home)
    state = State(server.state)
    offer = the_offer(state, run)
    set_withdrawn(state, offer.run_id, False)
    _carry_out(server, offer.run_id, wait_seconds, detach, as_json)


def _carry_out(server: ServerHome, run_id: str, wait_seconds: float | None, detach: bool, as_json: bool) -> None:
    """`carry_out`, and what came of it."""
    from server.following import run_facts
    from server.launch import the_offer
    from server.state import State

    carry_out(server, run_id, wait_seconds, detach)
    facts = run_facts(server, the_offer(State(server.state), run_id), time.time())
    if as_json:
        print(json.dumps({**facts.as_json, "folder": str(server.run(run_id))}))
    elif not detach:
        say(f"run {run_id[:8]}: {facts.rounds_done} rounds done; the model and all about them are in {server.run(run_id)}")


def carry_out(server: ServerHome, run_id: str, wait_seconds: float | None, detach: bool = False) -> None:
    """Wait for the answers, submit, follow; Ctrl-C ends this command, never the run."""
    from common.errors import RunInterrupted
    from server.following import Tail, follow
    from server.launch import wait_for_answers

    tail = Tail(server, run_id)
    try:
        wait_for_answers(server, run_id, float("inf") if wait_seconds is None else wait_seconds, _say_answers)
    except KeyboardInterrupt:
        raise RunInterrupted(f"the offer stands; `{NAME} resume {run_id[:8]}` goes on, `{NAME} stop {run_id[:8]}` takes it back") from None
    _submit(server, run_id)
    try:
        if not detach:
            follow(server, run_id, tail, _say_event)
    except KeyboardInterrupt:
        raise RunInterrupted(f"the run goes on; `{NAME} status` shows it, `{NAME} stop {run_id[:8]}` stops it") from None


def _submit(server: ServerHome, run_id: str) -> None:
    """Hand a run over, unless the executor has just resumed it by itself."""
    from common.errors import RefusedError
    from server.launch import submit, the_offer
    from server.state import State

    try:
        submit(server, the_offer(State(server.state), run_id))
        say(f"run {run_id[:8]}: started")
    except RefusedError as error:
        if error.code != "RUN_ACTIVE":
            raise
        say(f"run {run_id[:8]}: it runs already")


def status(
    watch: Annotated[bool, typer.Option("--watch", help="Show it again and again until Ctrl-C.")] = False,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Is the coordinator up, which sites are connected, and what the runs are doing."""
    from server.commands.tables import print_status
    from server.following import standing
    from server.home import ServerHome

    server = ServerHome.find(home)
    while True:
        facts = standing(server, time.time())
        if as_json:
            print(json.dumps(facts), flush=True)
        else:
            print_status(facts, clear=watch)
        if not watch:
            return
        time.sleep(WATCH_SECONDS)


def runs(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """All runs, oldest first."""
    from server.commands.tables import print_runs
    from server.following import all_runs
    from server.home import ServerHome

    facts = [run.as_json for run in all_runs(ServerHome.find(home), time.time())]
    if as_json:
        print(json.dumps({"runs": facts}))
    else:
        print_runs(facts)


def logs(run: RunArgument, home: HomeOption = None) -> None:
    """What the server of a run printed, every time it was started."""
    from server.home import ServerHome
    from server.launch import the_offer
    from server.run_processes import log_of
    from server.run_registry import RunRegistry
    from server.state import State

    server = ServerHome.find(home)
    state = State(server.state)
    for started in RunRegistry(state).of(the_offer(state, run).run_id):
        path = log_of(server, started.flower_run_id)
        if path.exists():
            sys.stdout.write(path.read_text(encoding="utf-8", errors="replace"))
        else:
            say(f"{path}: no log; it never started, or the log was removed")


def stop(run: RunArgument, home: HomeOption = None) -> None:
    """Stop a run, or take an offer back. No site gets a message of it from then on; `resume` goes on from the last checkpoint."""
    from server.following import stop_run
    from server.home import ServerHome
    from server.launch import the_offer
    from server.state import State

    server = ServerHome.find(home)
    offer = the_offer(State(server.state), run)
    was_running = stop_run(server, offer)
    say(f"run {offer.run_id[:8]}: " + ("stopped" if was_running else "was not running; its offer is taken back"))


def readmit(run: RunArgument, site: SiteArgument, home: HomeOption = None) -> None:
    """Let a site that was suspended for its bad updates take part in a run again, from the next round on."""
    from common.errors import InputError
    from server.home import ServerHome
    from server.launch import the_offer
    from server.runs import RunStore
    from server.state import State

    server = ServerHome.find(home)
    run_id = the_offer(State(server.state), run).run_id
    path = server.run(run_id) / "rounds.sqlite"
    store = RunStore(path) if path.exists() else None
    suspended = store.suspended(run_id) if store is not None else {}
    if store is None or site not in suspended:
        raise InputError(f"{site}: not suspended in run {run_id[:8]}; suspended are: {', '.join(suspended) or 'none'}")
    store.pardon(run_id, site)
    say(f"run {run_id[:8]}: {site} takes part again; it was suspended for: {'; '.join(suspended[site])}")


def running_coordinator(home: Path | None) -> ServerHome:
    """The coordinator's folder, if `up` runs in it. Raises FederationError."""
    from common.errors import FederationError
    from server.home import ServerHome
    from server.supervisor import is_held

    server = ServerHome.find(home)
    if not is_held(server):
        raise FederationError(f"{server.folder}: the coordinator is not running; start it with `{NAME} up --home {server.folder}`")
    return server


def _say_answers(found: Answers) -> None:
    parts = [("approved", found.approved), ("rejected", found.rejected), ("not yet", found.silent)]
    say("; ".join(f"{label}: {', '.join(names)}" for label, names in parts if names))


def _say_event(event: Event) -> None:
    texts = {
        "round_started": "round {round}: {sites}",
        "site_replied": "round {round}: {site} replied after {seconds:.1f} s",
        "site_refused": "round {round}: {site} {code} {reason}",
        "round_done": "round {round}: {updates} updates in {seconds:.1f} s",
        "site_away": "round {round}: {site} is away; waiting for it",
        "site_interrupted": "round {round}: the daemon of {site} ended while it trained; waiting for it",
        "run_resumed": "it goes on: {reason}",
        "checkpoint_damaged": "{file} is damaged ({reason}); {then}",
        "site_suspended": "{site} is suspended: {reasons}",
        "site_surveyed": "{site} sent its tables after {seconds:.1f} s",
        "measured": "round {round}: AUROC {auroc}, standard error {standard_error}",
    }
    if event.name in texts:
        shown = {name: "; ".join(map(str, fact)) if isinstance(fact, list) else fact for name, fact in event.facts.items()}
        say(texts[event.name].format(**shown).rstrip())


def say(text: str) -> None:
    """A line for whoever sits there; stdout is for machines."""
    print(f"{NAME}: {text}", file=sys.stderr, flush=True)
