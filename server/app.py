# SPDX-License-Identifier: Apache-2.0
"""The ServerApp: thin. Reads the study from the run config, and everything else from the server's own home folder.

The home holds `run.json` (our run id and the sites expected) and the coordinator's key, and gets the checkpoints, the run store, the
events and the sites' ledger heads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from pydantic import BaseModel, ConfigDict

from common.errors import InputError
from common.events import EventLog
from common.study import Study
from server.checkpoints import Checkpoints
from server.initial import initial_model
from server.receipts import Receipts
from server.rounds import RoundLoop
from server.runs import RunStore

HOME_VARIABLE = "WARDROUND_SERVER_HOME"
STUDY_KEY = "study"


class RunFile(BaseModel):
    """`run.json` in the server's home."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    sites: tuple[str, ...]


def home_from_environment() -> Path:
    """The server's home, from `WARDROUND_SERVER_HOME`. Raises InputError when it is not set."""
    home = os.environ.get(HOME_VARIABLE)
    if not home:
        raise InputError(f"{HOME_VARIABLE} is not set; it names the server's home folder")
    return Path(home)


def create_app(home: Callable[[], Path]) -> ServerApp:
    """A ServerApp whose state lives in the folder that `home` returns."""
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:
        run_study(grid, Study.from_canonical_json(str(context.run_config[STUDY_KEY])), home())

    return server_app


def run_study(grid: Grid, study: Study, home: Path) -> None:
    """Run or continue a study over `grid` from what is in `home`."""
    run = RunFile.model_validate_json((home / "run.json").read_text(encoding="utf-8"))
    with closing(EventLog(home / "events.jsonl")) as events:
        loop = RoundLoop(
            grid=grid,
            study=study,
            run_id=run.run_id,
            sites=len(run.sites),
            checkpoints=Checkpoints(home / "checkpoints", study.id, run.run_id),
            store=RunStore(home / "rounds.sqlite"),
            events=events,
            receipts=Receipts(home),
        )
        loop.run(lambda: initial_model(study))


app = create_app(home_from_environment)
