# SPDX-License-Identifier: Apache-2.0
"""Run a module that ends when the coordinator ends: `python -m server.leashed MODULE ARGUMENTS…`.

`up` keeps one end of a pipe open; its children, and theirs, have the other end as standard input. However `up` ends, killed included, the
pipe closes, and each of them stops as if it had been told to.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Sequence

GRACE_SECONDS = 10.0


def command(module: str, arguments: Sequence[str]) -> list[str]:
    """The command line that runs `module` on the leash; nothing is imported from the working folder."""
    return [sys.executable, "-P", "-m", "server.leashed", module, *arguments]


def main(command_line: Sequence[str]) -> None:
    """Become `module` with its arguments."""
    module, *arguments = command_line
    threading.Thread(target=_hold, name="leash", daemon=True).start()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _hold() -> None:
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_SECONDS)
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
