# SPDX-License-Identifier: Apache-2.0
"""`run.json` in a run's folder: which run it is and who takes part."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

RUN_FILE = "run.json"


class RunFile(BaseModel):
    """`min_sites` may raise the study's. `node_keys` (PEM) and `signing_keys` (hexadecimal) by site, where sites are known by keys."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    sites: tuple[str, ...]
    min_sites: int = 0
    node_keys: dict[str, str] | None = None
    signing_keys: dict[str, str] | None = None
