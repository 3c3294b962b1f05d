# SPDX-License-Identifier: Apache-2.0
"""Where the ServerApps of a coordinator leave their traces: a lock file while one is at work, and the log of what it printed.

A ServerApp has its lock file open and locked from before it runs until it is gone; nothing else of it has to be believed.
"""

from __future__ import annotations

import fcntl
from collections.abc import Collection
from pathlib import Path

from server.home import ServerHome

KEPT_LOGS = 50


def lock_folder(home: ServerHome) -> Path:
    """Where the lock files are, each named by Flower's number of its run."""
    return home.folder / "serverapps"


def is_at_work(home: ServerHome, flower_run_id: int) -> bool:
    """Whether the server of this Flower run is there, whoever started it."""
    try:
        with (lock_folder(home) / str(flower_run_id)).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def all_at_work(home: ServerHome) -> list[int]:
    """The Flower runs whose server is there."""
    return [run for path in lock_folder(home).glob("*") if is_at_work(home, run := int(path.name))]


def log_of(home: ServerHome, flower_run_id: int) -> Path:
    """Where the output of one ServerApp goes."""
    return home.logs / f"run-{flower_run_id}.log"


def prune_logs(home: ServerHome, in_use: Collection[int] = (), kept: int = KEPT_LOGS) -> list[Path]:
    """Remove all but the newest `kept` logs; those `in_use` stay in any case. Returns what was removed."""
    needed = {log_of(home, flower_run_id) for flower_run_id in in_use}
    newest_first = sorted(home.logs.glob("run-*.log"), key=lambda path: path.stat().st_mtime, reverse=True)
    old = [path for path in newest_first[kept:] if path not in needed]
    for path in old:
        path.unlink(missing_ok=True)
    return old
