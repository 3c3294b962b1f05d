# SPDX-License-Identifier: Apache-2.0
"""The ServerApp: thin. Reads the study from the run config, and everything else from the server's own folders.

A run with a signed start record is one of real hospitals: its folder is `runs/<run id>` in the coordinator's folder, its sites are those
of the record, known by their keys. Any other run has a home of its own, which holds `run.json`. Both get the checkpoints, the run store
and the events; ledger heads and the coordinator's key lie in the home, or in the coordinator's folder, which all runs share.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.errors import InputError
from common.events import EventLog
from common.federation import SIGNATURE_KEY, STUDY_KEY
from common.json_log import tell_events
from common.protocol import Arrays
from common.study import Study
from server.checkpoints import Checkpoints
from server.exchange import Pick, every_node
from server.home import ServerHome
from server.initial import initial_model
from server.receipts import Receipts
from server.rounds import RoundLoop
from server.run_file import RUN_FILE, RunFile
from server.run_story import its_end_told
from server.runs import RunStore
from server.statements import Statements
from server.surveys.loop import SurveyLoop

__all__ = ["HOME_VARIABLE", "STUDY_KEY", "RunFile", "app", "create_app", "run_study"]

HOME_VARIABLE = "WARDROUND_SERVER_HOME"


@dataclass(frozen=True)
class Surroundings:
    """Where a run keeps its files, and who takes part; `receipts` is the folder with the coordinator's key and the ledger heads."""

    folder: Path
    receipts: Path
    sites: int
    initial_model: Callable[[Study], Arrays] = initial_model
    pick: Pick = every_node
    statements: Statements | None = None
    roster: Callable[[], Mapping[str, str]] = dict


def home_from_environment() -> Path:
    """The server's home, from `WARDROUND_SERVER_HOME`. Raises InputError when it is not set."""
    home = os.environ.get(HOME_VARIABLE)
    if not home:
        raise InputError(f"{HOME_VARIABLE} is not set; it names the server's home folder")
    return Path(home)


def create_app(home: Callable[[], Path]) -> ServerApp:
    """A ServerApp whose state lives in the folder that `home` returns, or in the coordinator's for a run that was signed."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        config: Mapping[str, Any] = context.run_config
        if config.get(SIGNATURE_KEY):
            run_signed(grid, str(config[STUDY_KEY]), str(config[SIGNATURE_KEY]), context.run_id)
        else:
            run_study(grid, Study.from_canonical_json(str(config[STUDY_KEY])), home())

    return server_app


def run_study(grid: Grid, study: Study, home: Path) -> None:
    """Run or continue a study over `grid` from what is in `home`."""
    run = RunFile.model_validate_json((home / RUN_FILE).read_text(encoding="utf-8"))
    _run(grid, study, run, Surroundings(home, home, len(run.sites), roster=lambda: dict.fromkeys(run.sites, "")))


def run_signed(grid: Grid, study_text: str, signature: str, flower_run_id: int) -> None:
    """Run or continue a study of real hospitals. Raises what `server.cohort.open_run` raises before anything is sent."""
    from server.cohort import Cohort, alone, open_run, signed_initial

    home = ServerHome.find(None)
    offer, run = open_run(home, study_text, signature, flower_run_id)
    cohort = Cohort(home, offer, run)
    folder = home.run(run.run_id)
    with alone(folder):
        surroundings = Surroundings(
            folder,
            home.folder,
            len(cohort.ready),
            lambda study: signed_initial(home, study, offer.record),
            cohort.pick,
            cohort.statements(run.signing_keys or {}),
            cohort.roster,
        )
        _run(grid, Study.from_canonical_json(study_text), run, surroundings)


def _run(grid: Grid, study: Study, run: RunFile, around: Surroundings) -> None:
    with closing(EventLog(around.folder / "events.jsonl", (tell_events(run.run_id),))) as events:
        if study.purpose == "survey":
            with its_end_told(events):
                _survey_loop(grid, study, run, around, events).run()
            return
        loop = RoundLoop(
            grid=grid,
            study=study,
            run_id=run.run_id,
            sites=around.sites,
            checkpoints=Checkpoints(around.folder / "checkpoints", study.id, run.run_id),
            store=RunStore(around.folder / "rounds.sqlite"),
            events=events,
            receipts=Receipts(around.receipts),
            min_sites=run.min_sites,
            pick=around.pick,
            statements=around.statements,
            roster=around.roster,
        )
        with its_end_told(events):
            loop.run(lambda: around.initial_model(study))


def _survey_loop(grid: Grid, study: Study, run: RunFile, around: Surroundings, events: EventLog) -> SurveyLoop:
    return SurveyLoop(
        grid=grid,
        study=study,
        run_id=run.run_id,
        sites=around.sites,
        folder=around.folder,
        store=RunStore(around.folder / "rounds.sqlite"),
        events=events,
        receipts=Receipts(around.receipts),
        min_sites=run.min_sites,
        pick=around.pick,
        statements=around.statements,
        roster=around.roster,
    )


app = create_app(home_from_environment)
