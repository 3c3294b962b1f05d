# SPDX-License-Identifier: Apache-2.0
"""One coordinator with two enrolled hospitals, its gateway as a real process, and a small real server in the SuperLink's place."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.common.flower_compat.attacker import FleetAttacker
from tests.server.gateway.coordinator import NODE_OF, RUN_OF, Coordinator, Hospital, gateway, node
from tests.server.gateway.upstream import Upstream, upstream


@dataclass
class Federation:
    """What the tests of a module share."""

    coordinator: Coordinator
    north: Hospital
    south: Hospital
    upstream: Upstream

    def lines(self) -> list[dict[str, Any]]:
        """The access log as it is now."""
        return [json.loads(line) for line in (self.coordinator.home.logs / "access.log").read_text().splitlines()]

    def logged(self, seconds: float = 5.0, **facts: object) -> dict[str, Any]:
        """The newest line with these facts; a line is written after its answer was sent."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for line in reversed(self.lines()):
                if facts.items() <= line.items():
                    return line
            time.sleep(0.02)
        raise AssertionError(f"the access log has no line with {facts}")


def founded(folder: Path) -> tuple[Coordinator, Hospital, Hospital]:
    """A coordinator, hospitals north and south, and four runs: one of each, one of both, one that nobody approved."""
    coordinator = Coordinator.make(folder)
    north, south = (coordinator.hospital(name, folder, NODE_OF[name]) for name in ("north", "south"))
    approving = {"north": (north,), "south": (south,), "both": (north, south), "nobody": ()}
    for name, hospitals in approving.items():
        coordinator.start(RUN_OF[name], ("north", "south"), hospitals)
    return coordinator, north, south


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    """The federation of all tests that do not change it."""
    coordinator, north, south = founded(tmp_path_factory.mktemp("federation"))
    with upstream(coordinator.home) as inner, gateway(coordinator):
        yield Federation(coordinator, north, south, inner)


@pytest.fixture
def federation(shared: Federation) -> Federation:
    """The shared federation, its SuperLink's answers and memory empty."""
    shared.upstream.answers.clear()
    shared.upstream.seen.clear()
    return shared


@pytest.fixture
def north(federation: Federation) -> Iterator[FleetAttacker]:
    with node(federation.coordinator, federation.north) as site:
        yield site


@pytest.fixture
def south(federation: Federation) -> Iterator[FleetAttacker]:
    with node(federation.coordinator, federation.south) as site:
        yield site
