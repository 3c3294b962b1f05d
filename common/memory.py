# SPDX-License-Identifier: Apache-2.0
"""Two habits of processes that live long: what a model took goes back to the system, what stays for good is not looked through again."""

from __future__ import annotations

import ctypes
import gc
from typing import Final

LARGE_BYTES: Final = 1 << 20
_M_MMAP_THRESHOLD: Final = -3
"""`mallopt`'s name for it in glibc's malloc.h."""


def give_back_large_blocks() -> bool:
    """Have the C library take blocks from `LARGE_BYTES` on from the system one by one, and give each back when it is freed.

    Left alone, glibc keeps blocks of up to 32 MB for the next time, once it has freed one of that size. That is faster for who computes,
    and not for who hands a model on a few times a minute. Returns whether there is such a library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES))


def keep_what_is_loaded() -> None:
    """Take all that exists now (modules, classes, routes) out of what the garbage collector looks through, again and again."""
    gc.collect()
    gc.freeze()
