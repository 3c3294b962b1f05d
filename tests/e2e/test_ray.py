# SPDX-License-Identifier: Apache-2.0
"""Flower's own Ray engine keeps to the same conformance suite as our grid."""

import subprocess
import sys

import pytest

from tests.support.grids import CHECKS

SCRIPT = """
import common
from flwr.serverapp import ServerApp
from common.flower_compat.simulation import RayResources, run_on_ray
from tests.support.apps import app as client_app
from tests.support.grids import CHECKS, check_every_node_answers
from server.exchange import wait_for_nodes

server_app = ServerApp()

@server_app.main()
def main(grid, context):
    assert context.run_config["study"] == "text"
    wait_for_nodes(grid, 3, 3, 60)
    check_every_node_answers(grid)
    for check in CHECKS:
        check(grid)
        print("passed", check.__name__, flush=True)

run_on_ray(server_app, client_app, sites=3, flower_run_id=7, run_config={"study": "text"}, resources=RayResources(workers=2, threads=1))
"""


@pytest.mark.slow
def test_conformance_on_ray() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=240, check=False)
    passed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("passed")]
    assert passed == [check.__name__ for check in CHECKS], done.stderr[-3000:]
    assert done.returncode == 0, done.stderr[-3000:]
