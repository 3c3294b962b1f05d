# SPDX-License-Identifier: Apache-2.0
"""A site's own record of its rounds: one JSON line each, for hospital IT. It holds exact figures and never leaves the site."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from common.files import cut_torn_line


class RoundEntry(BaseModel):
    """One round of training.

    `epsilon` is an upper bound of what this run has spent after it, never above what the whole run costs (`client.spending_curve`);
    None without privacy. What an account has spent in all studies is the ledger's business: `wardround-client budget`. `time` is the
    round's end, in seconds since the epoch; 0 in lines of before it was written down.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    round: int
    steps: int
    loss: float | None
    non_finite: int
    epsilon: float | None
    seconds: float
    device: str
    time: float = 0.0


def append_entry(path: Path, entry: RoundEntry) -> None:
    """Add one line; what a crash left of an earlier one is removed first."""
    if path.exists():
        cut_torn_line(path)
    with path.open("a", encoding="utf-8") as file:
        file.write(entry.model_dump_json() + "\n")


def read_entries(path: Path) -> Iterator[RoundEntry]:
    """All entries in order; a last line cut by a crash is left out."""
    if not path.exists():
        return
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            yield RoundEntry.model_validate(json.loads(line))
