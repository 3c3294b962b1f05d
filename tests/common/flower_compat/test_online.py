# SPDX-License-Identifier: Apache-2.0
"""Flower's own database, written by Flower's own code, read by ours without any of it."""

import subprocess
import sys
import time
from pathlib import Path

from flwr.server.superlink.linkstate.linkstate_factory import LinkStateFactory
from flwr.supercore.constant import NOOP_ACCOUNT_NAME
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from common.flower_compat.online import online_nodes

INTERVAL = 30.0
PATIENCE = 2.0
"""Flower waits for two heartbeats."""


def test_who_is_online_as_flower_itself_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "superlink.sqlite"
    assert online_nodes(path, time.time()) == set()
    state = LinkStateFactory(str(path), NoOpFederationManager(), ObjectStoreFactory(str(path))).state()
    nodes = [state.create_node("us", NOOP_ACCOUNT_NAME, bytes([number]), INTERVAL) for number in range(40)]
    assert any(node >= 1 << 63 for node in nodes), "numbers above 63 bits are what is hard to read"
    assert online_nodes(path, time.time()) == set()
    online, gone = nodes[::2], nodes[0]
    assert all(state.activate_node(node, INTERVAL) for node in online)
    assert online_nodes(path, time.time()) == set(online)
    state.deactivate_node(gone)
    assert online_nodes(path, time.time()) == set(online) - {gone}
    assert online_nodes(path, time.time() + INTERVAL / 2) == set(online) - {gone}
    assert online_nodes(path, time.time() + PATIENCE * INTERVAL + 1) == set()


def test_reading_it_loads_nothing_of_flower() -> None:
    code = "import sys, common.flower_compat.online; print(any(name.split('.')[0] in ('flwr', 'numpy') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
