# SPDX-License-Identifier: Apache-2.0
"""What a simulated run is asked to do and what it hands back. No heavy imports: the command line reads this at every start."""

from __future__ import annotations

import difflib
import re
import secrets
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from common.errors import InputError
from common.study import Study

if TYPE_CHECKING:
    from simulations.results import RunResult

SHIPPED_STUDIES = Path(__file__).parent / "studies"
RUNS_FOLDER = Path("runs")
_DEVICE = re.compile(r"^(?:auto|cpu|cuda:\d{1,3})$")
_MAX_SEEDS = 100


@dataclass(frozen=True)
class RunOptions:
    """One call of `wardround-sim run`. Raises InputError with all problems.

    `sites`, `partition`, `threads` None mean the default of the data or the machine; `seeds` empty means the study's own seed;
    `baselines` trains pooled and each site alone for comparison; `command` is what was typed, for the report.
    """

    study: Study
    out: Path
    data: Path | None = None
    sites: int | None = None
    partition: str | None = None
    workers: int = 1
    threads: int | None = None
    engine: Literal["local", "ray"] = "local"
    device: str = "auto"
    seeds: tuple[int, ...] = ()
    command: str = ""
    baselines: bool = True

    def __post_init__(self) -> None:
        problems = [
            f"--{name} is {value}; give 1 or more"
            for name, value in (("sites", self.sites), ("workers", self.workers), ("threads", self.threads))
            if value is not None and value < 1
        ]
        if not _DEVICE.match(self.device):
            problems.append(f"--device {self.device}: there is no such device; give auto, cpu or cuda:0")
        if len(set(self.seeds)) != len(self.seeds) or any(not 0 <= seed < 2**63 for seed in self.seeds):
            problems.append("--seeds: give different whole numbers from 0, such as 0,1,2")
        if problems:
            raise InputError(problems)


@dataclass(frozen=True)
class RunOutcome:
    """One finished run (one seed): its folder, its report, and what it found."""

    run_dir: Path
    report: Path
    result: RunResult | None


def shipped_studies() -> tuple[str, ...]:
    """Names of the studies that come with Wardround."""
    return tuple(sorted(path.stem for path in SHIPPED_STUDIES.glob("*.yaml")))


def find_study(text: str) -> Path:
    """The file that `text` names: a path, or the bare name of a shipped study. Raises InputError."""
    if Path(text).is_file():
        return Path(text)
    names = shipped_studies()
    if text in names:
        return SHIPPED_STUDIES / f"{text}.yaml"
    near = difflib.get_close_matches(Path(text).stem, names, n=1)
    remedy = f"did you mean {near[0]}?" if near else f"give a path, or one of {', '.join(names)}"
    raise InputError(f"{text}: no such study file, and no shipped study has that name; {remedy}")


def parse_seeds(text: str) -> tuple[int, ...]:
    """`0,1,2` as numbers. Raises InputError."""
    words = [word.strip() for word in text.split(",")]
    if len(words) > _MAX_SEEDS or not all(word.isascii() and word.isdigit() and len(word) < 20 for word in words):
        raise InputError(f"--seeds {text}: give whole numbers with commas between them, such as 0,1,2 (at most {_MAX_SEEDS})")
    return tuple(int(word) for word in words)


def new_run_folder(study: Study, out: Path | None) -> Path:
    """`out`, or a fresh name under `runs/`. Raises InputError if something is there already: two runs never mix."""
    if out is None:
        return RUNS_FOLDER / f"{study.name}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"--out {out}: is there already; name a new folder, or continue that run with --resume {out}")
    return out
