# SPDX-License-Identifier: Apache-2.0
"""Commands that only look at files start without Flower, numpy and torch."""

import json
import subprocess
import sys
from pathlib import Path

from tests.server.gateway.coordinator import Coordinator
from tests.server.offering import offered
from tests.support.studies import small

HEAVY = ("flwr", "numpy", "torch", "httpx", "uvicorn", "scipy")
PROGRAM = f"""
import json, sys
from server.cli import main
for line in json.loads(sys.argv[1]):
    code = main(line)
    print(json.dumps([line, code, [name for name in {HEAVY} if name in sys.modules]]), file=sys.stderr)
"""


def test_simple_commands_load_nothing_heavy(tmp_path: Path) -> None:
    coordinator = Coordinator.make(tmp_path)
    offered(coordinator, small(), ("north",))
    home = ["--home", str(coordinator.home.folder)]
    simple = [["status"], ["runs"], ["runs", "--json"], ["sites"], ["logs", "last"], ["invite", "north", "--out", str(tmp_path / "n.json")]]
    lines = [["--help"], ["start", "--help"], *[[*line, *home] for line in simple]]
    done = subprocess.run([sys.executable, "-c", PROGRAM, json.dumps(lines)], capture_output=True, text=True, timeout=240)
    said = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("[[")]
    assert said == [[line, 0, []] for line in lines], done.stderr
