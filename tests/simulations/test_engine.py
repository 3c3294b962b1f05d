# SPDX-License-Identifier: Apache-2.0
import os
import time
from collections.abc import Callable, Iterator

import pytest
from flwr.serverapp import Grid

from client.worker import WorkerSettings
from common.protocol import RefusalCode, read_reply
from simulations.engine import InProcessGrid
from tests.support.grids import CHECKS, ask, told

SITES = ["north", "south", "west"]
SETTINGS = WorkerSettings("tests.support.apps:app", {"WARDROUND_MARK": "set"})


@pytest.fixture(scope="module", params=[1, 2])
def grid(request: pytest.FixtureRequest) -> Iterator[InProcessGrid]:
    with InProcessGrid(SITES, SETTINGS, workers=request.param) as grid:
        yield grid


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conformance(grid: InProcessGrid, check: Callable[[Grid], None]) -> None:
    check(grid)


def test_nodes_carry_the_sites_names(grid: InProcessGrid) -> None:
    assert [node.name for node in grid.get_nodes()] == SITES


def test_a_site_keeps_its_worker_and_several_workers_share_the_sites() -> None:
    with InProcessGrid(SITES, SETTINGS, workers=2) as grid:
        nodes = grid.get_node_ids()
        processes = [{told(reply)["partition"]: told(reply)["process"] for reply in _all(grid, nodes)} for _ in range(2)]
        assert processes[0] == processes[1]
        assert len(set(processes[0].values())) == 2
        assert os.getpid() not in processes[0].values()


def test_a_worker_that_dies_refuses_within_a_second_and_the_others_go_on() -> None:
    with InProcessGrid(SITES, SETTINGS, workers=2) as grid:
        nodes = grid.get_node_ids()
        seconds = []
        while not seconds or (min(seconds) >= 1.0 and len(seconds) < 3):  # a busy machine may be slow once
            _all(grid, nodes)
            started = time.monotonic()
            replies = {reply.metadata.src_node_id: reply for reply in grid.send_and_receive([ask(n, die=True) for n in nodes], timeout=30)}
            seconds.append(time.monotonic() - started)
        assert min(seconds) < 1.0
        refusal = read_reply(replies[nodes[0]].content, run_id="any", round_number=1, shapes={})
        assert (refusal.code, refusal.site) == (RefusalCode.WORKER_LOST, "north")
        assert told(replies[nodes[1]])["partition"] == 1
        (again,) = grid.send_and_receive([ask(nodes[0], echo="restarted")], timeout=30)
        assert told(again)["echo"] == "restarted"


def test_an_error_tells_the_class_and_not_the_text(grid: InProcessGrid) -> None:
    (reply,) = grid.send_and_receive([ask(grid.get_node_ids()[0], **{"raise": True})], timeout=30)
    assert reply.error.reason == "ValueError"


def test_closing_in_the_middle_of_a_message_ends_the_workers() -> None:
    grid = InProcessGrid(SITES, SETTINGS, workers=1)
    _all(grid, grid.get_node_ids())
    (process,) = grid.worker_process_ids
    grid.push_messages([ask(grid.get_node_ids()[0], sleep=60.0)])
    time.sleep(0.2)
    started = time.monotonic()
    grid.close()
    assert time.monotonic() - started < 10
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def _all(grid: InProcessGrid, nodes: list[int]) -> list:
    return list(grid.send_and_receive([ask(node) for node in nodes], timeout=30))


def test_replies_that_came_too_late_are_not_kept_for_ever() -> None:
    with InProcessGrid(SITES, SETTINGS, workers=1) as grid:
        _all(grid, grid.get_node_ids())  # the worker is up
        node = grid.get_node_ids()[0]
        for number in range(3):
            late = ask(node, sleep=0.6, echo=str(number))
            late.metadata.ttl = 0.5
            grid.push_messages([late])
            time.sleep(1.0)
        assert 0 < grid.kept_replies < 3, "each drops those before it"
        (reply,) = grid.send_and_receive([ask(node, echo="next")], timeout=30)
        assert told(reply)["echo"] == "next"
        assert grid.kept_replies == 0
