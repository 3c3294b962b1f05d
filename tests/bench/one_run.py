# SPDX-License-Identifier: Apache-2.0
"""One run without baselines, for the benchmark: options as JSON on the command line, what happened when as JSON on stdout."""

import json
import sys
from pathlib import Path

from common.events import read_events
from common.study_file import load_study
from simulations.options import RunOptions


def main(request: dict) -> None:
    from simulations.run import run_study

    study = load_study(Path(request["study"])).with_changes(request["changes"])
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
    run_study(options, ())
    times = {}
    for event in read_events(options.out / "events.jsonl"):
        if event.name in ("round_started", "rounds_finished", "round_done"):
            times.setdefault(f"first_{event.name}", event.time)
            times[f"last_{event.name}"] = event.time
    print(json.dumps(times))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
