# SPDX-License-Identifier: Apache-2.0
"""The site's line says when it breaks and when it is back, each time, also when it breaks in the same way as before."""

import json
from pathlib import Path

from client.daemon_log import DaemonLog
from client.link import Link, Timing
from client.site_home import SiteHome
from client.status import DaemonState, StatusBoard
from common.flower_compat.fleet import Unreachable


class Line:
    """A connection to nowhere that is always there."""

    def activate(self, known_node_id: int | None = None) -> int:
        return 7

    def keep_heartbeat(self) -> bool:
        return False

    def close(self) -> None:
        pass


def test_the_same_outage_again_is_said_again(tmp_path: Path) -> None:
    home, now, answers = SiteHome(tmp_path), [100.0], iter([False, False, True, False, True])
    board = StatusBoard(home, "1", lambda: now[0])
    log = DaemonLog(home.logs)
    link = Link(Line, board, log, str, Timing(first=0.001, longest=0.001))  # type: ignore[arg-type]  # nobody is at the other end

    def ask(_: object) -> str:
        if not next(answers):
            raise Unreachable("https://nowhere: no answer")
        return "yes"

    assert link.call(ask) == "yes"
    now[0] = 200.0
    assert link.call(ask) == "yes"
    log.close()
    events = [json.loads(line)["event"] for line in (home.logs / "daemon.log").read_text(encoding="utf-8").splitlines()]
    assert events == ["online", "coordinator unreachable", "connected again", "coordinator unreachable", "connected again"]
    state = DaemonState.read(home)
    assert state is not None and state.last_error_at == 200.0
