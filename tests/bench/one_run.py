# SPDX-License-Identifier: Apache-2.0
"""One run without baselines, for the benchmark: options as JSON on the command line, what happened when as JSON on stdout.

Besides the times it tells the memory of this process, the driver, alone: its unique set size (what no other process shares) when each
round was done, and the most that was resident until the rounds were finished and until the end.
"""

import json
import resource
import sys
from pathlib import Path

import psutil

from common.events import Event, read_events
from common.study_file import load_study
from simulations.options import RunOptions
from simulations.warm import warm_up


class Memory:
    """A listener that looks at this process after each round."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self.after_round_bytes: list[int] = []
        self.peak_of_rounds_bytes = 0

    def __call__(self, event: Event) -> None:
        if event.name == "round_done":
            self.after_round_bytes.append(self._process.memory_full_info().uss)
        if event.name == "rounds_finished":
            self.peak_of_rounds_bytes = peak_resident_bytes()


def peak_resident_bytes() -> int:
    """The most memory that was resident in this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(request: dict) -> None:
    study = load_study(Path(request["study"])).with_changes(request["changes"])
    warm_up(study.is_private)
    from simulations.run import run_study

    options = RunOptions(
        study=study,
        out=Path(request["out"]),
        data=Path(request["data"]) if request["data"] else None,
        sites=request["sites"],
        workers=request["workers"],
        threads=request["threads"],
        engine=request["engine"],
        baselines=False,
    )
    memory = Memory()
    run_study(options, (memory,))
    facts = {
        "round_seconds": [],
        "driver_after_round_bytes": memory.after_round_bytes,
        "driver_peak_of_rounds_bytes": memory.peak_of_rounds_bytes,
        "driver_peak_bytes": peak_resident_bytes(),
    }
    for event in read_events(options.out / "events.jsonl"):
        if event.name in ("round_started", "rounds_finished", "round_done"):
            facts.setdefault(f"first_{event.name}", event.time)
            facts[f"last_{event.name}"] = event.time
        if event.name == "round_done":
            facts["round_seconds"].append(event.facts["seconds"])
    print(json.dumps(facts))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
