# SPDX-License-Identifier: Apache-2.0
"""The site's own log of failures: what leaves a site is one code, the cause and the remedy are here, for hospital IT.

A full disk is told apart from everything else, and it must not silence its own message: a small file beside the log keeps some room,
and is given up when the log cannot be written otherwise.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

from client.site import log_path
from common.wire_names import RefusalCode

ROOM_BYTES = 1 << 16
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def room_path(folder: Path) -> Path:
    """The file that keeps room for the log."""
    return folder / ".site.log.room"


def keep_room(folder: Path) -> None:
    """Make sure that a full disk can still be logged; what cannot be done now is tried again with the next message."""
    path = room_path(folder)
    with suppress(OSError):
        if folder.is_dir() and not path.exists():
            path.write_bytes(os.urandom(ROOM_BYTES))  # not zeros: some file systems store those as nothing


def log_failure(folder: Path | None, code: RefusalCode, error: Exception) -> None:
    """Write the cause of a refusal to the site's own log; to the process's error output when there is none or it cannot be written."""
    text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {code.value}: {_remedy(folder, error)}{''.join(traceback.format_exception(error))}"
    if folder is None or not (_append(folder, text) or _append_in_the_room(folder, text)):
        sys.stderr.write(text)


def full_disk(error: BaseException) -> str | None:
    """What the system said when it had no space for a file (disk, quota, limit of a file's size), anywhere among the causes of `error`."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return os.strerror(cause.errno)
        if isinstance(cause, sqlite3.Error) and getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            return str(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def _remedy(folder: Path | None, error: Exception) -> str:
    """The line for hospital IT when the cause is a full disk, else nothing."""
    said = full_disk(error)
    if said is None or folder is None:
        return ""
    with suppress(OSError):
        said += f"; {shutil.disk_usage(folder).free / 1e6:,.1f} MB are free there"
    return (
        f"DISK FULL at {folder} ({said}). Free some space, or raise the quota or limit; nothing else is to be done, "
        "the site takes part again from the next round on.\n"
    )


def _append(folder: Path, text: str) -> bool:
    """Whether `text` is in the log as a whole."""
    try:
        if not folder.is_dir():
            return False
        with log_path(folder).open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        return False
    return True


def _append_in_the_room(folder: Path, text: str) -> bool:
    """Give up the room that was kept and write into it."""
    with suppress(OSError):
        room_path(folder).unlink()
        return _append(folder, text)
    return False
