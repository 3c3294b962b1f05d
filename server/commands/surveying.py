# SPDX-License-Identifier: Apache-2.0
"""Command of the coordinator: survey, statistics with privacy before anyone trains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from server.commands.running import NAME, HomeOption, JsonOption, WaitOption, carry_out, running_coordinator, say

if TYPE_CHECKING:
    from server.home import ServerHome

SigningKeyOption = Annotated[
    Path | None, typer.Option("--signing-key", metavar="FILE", help="The study-signing key, if it is kept elsewhere.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog=f"Example: {NAME} survey study.yaml --sites st-mary,st-john --out survey.html")(survey)


def survey(
    study: Annotated[Path | None, typer.Argument(metavar="STUDY.yaml", help="The study that the survey is for.")] = None,
    sites: Annotated[str | None, typer.Option(metavar="A,B,C", help="The sites that are asked, by name.")] = None,
    run: Annotated[str | None, typer.Option("--run", metavar="RUN", help="A survey that was made: asks nobody, shows it again.")] = None,
    min_sites: Annotated[int, typer.Option(min=1, help="Fewest sites that have to approve and answer.")] = 1,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Copy the HTML page to here.")] = None,
    constants: Annotated[
        Path | None,
        typer.Option("--write-constants", metavar="FILE", help="Write data.columns of a tabular study with measured centre and scale."),
    ] = None,
    signing_key: SigningKeyOption = None,
    wait_seconds: WaitOption = None,
    home: HomeOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask the sites for statistics with privacy about their patients, before anyone trains; each site's IT approves it there.

    Every patient of a site pays ε of the survey. What was answered is kept: `--run` shows it again, and nobody pays for that.
    """
    from common.errors import InputError
    from server.home import ServerHome

    if (run is None) == (study is None) or (study is not None and not sites):
        raise InputError("survey: give a study file with --sites A,B,C to make one, or --run RUN to show one that was made")
    if run is None:
        server = running_coordinator(home)
        run_id = _made(server, study or Path(), str(sites), min_sites, signing_key, wait_seconds)
    else:
        server = ServerHome.find(home)
        run_id = _known(server, run)
    _show(server, run_id, out, constants, as_json)


def _made(server: ServerHome, study: Path, sites: str, min_sites: int, signing_key: Path | None, wait_seconds: float | None) -> str:
    """Sign the survey, offer it, wait, run it; our id of the run."""
    from common.crypto.secrets import Secret
    from common.federation import StartRecord
    from common.study_file import load_study
    from common.survey_plan import survey_study
    from server.offers import make_offer

    wanted = survey_study(load_study(study))
    names = [name.strip() for name in sites.split(",") if name.strip()]
    signed = make_offer(server, wanted, names, min_sites, Secret.read(signing_key or server.study_key).signer)
    record = StartRecord.model_validate_json(signed.record)
    say(f"run {record.run_id[:8]}, survey {record.study_id[:12]}: offered to {', '.join(names)}; each site's IT approves it there")
    carry_out(server, record.run_id, wait_seconds)
    return record.run_id


def _known(server: ServerHome, run: str) -> str:
    """The id of a run that was made. Raises InputError."""
    from server.launch import the_offer
    from server.state import State

    return the_offer(State(server.state), run).run_id


def _show(server: ServerHome, run_id: str, out: Path | None, constants: Path | None, as_json: bool) -> None:
    """Write what was asked for, and say what the survey found."""
    from common.files import write_atomic
    from server.surveys.constants import constants_yaml
    from server.surveys.findings import Findings
    from server.surveys.page import survey_page, write_survey_page
    from server.surveys.record import SurveyRecord

    folder = server.run(run_id)
    record = SurveyRecord.read(folder)
    findings, page = Findings(record), out or write_survey_page(folder, record)
    if out is not None:
        write_atomic(out, survey_page(record))
    if constants is not None:
        write_atomic(constants, constants_yaml(findings))
    if as_json:
        print(json.dumps({**findings.as_json(), "page": str(page)}))
        return
    for site in findings.sites:
        found = findings.patients(site)
        asked = f"at least {findings.plan.survey.min_patients}: {findings.reaches_minimum(site)}"
        say(f"{site}: {found.value:.0f} ± {found.error:.0f} patients; {asked}")
    for lack in findings.lacks():
        say(f"{lack.site}: no patient with label {lack.label} was seen above the noise")
    say(f"run {run_id[:8]}: {page} has the tables, and how alike the sites are")
