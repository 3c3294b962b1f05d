# SPDX-License-Identifier: Apache-2.0
"""What `up` does on its own; with its children it is in `test_up.py`."""

import threading
from pathlib import Path

from server.home import ServerHome, ServerSettings
from server.supervisor import UP_FILE, Supervisor


def test_a_state_file_that_cannot_be_written_stops_nobody(tmp_path: Path) -> None:
    """A full disk, say: the children are looked after all the same, and the file is written as soon as it can be."""
    home = ServerHome(tmp_path)
    home.write_settings(ServerSettings(url="https://coordinator.example", listen_host="127.0.0.1", listen_port=1, superlink_port=2))
    supervisor = Supervisor(home, threading.Event(), [])
    (tmp_path / UP_FILE).mkdir()
    supervisor._write([])
    (tmp_path / UP_FILE).rmdir()
    supervisor._write([])
    assert '"starting"' in (tmp_path / UP_FILE).read_text(encoding="utf-8")
