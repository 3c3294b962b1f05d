# SPDX-License-Identifier: Apache-2.0
"""Work for a child process."""

import os
import signal
from collections.abc import Callable

from common.errors import InputError

calls = 0


def double(request: bytes, progress: Callable[[int, int], None]) -> bytes:
    global calls
    calls += 1
    progress(1, 2)
    progress(2, 2)
    return request * 2


def process(request: bytes, progress: Callable[[int, int], None]) -> bytes:
    return str(os.getpid()).encode()


def complain(request: bytes, progress: Callable[[int, int], None]) -> bytes:
    raise InputError(["first", "second"])


def die(request: bytes, progress: Callable[[int, int], None]) -> bytes:
    os.kill(os.getpid(), signal.SIGKILL)
    return b""
