# SPDX-License-Identifier: Apache-2.0
"""What a model took goes back to the system: seen on the pages of a process of its own."""

import json
import platform
import subprocess
import sys

import pytest

SCRIPT = """
import gc, json, sys
from common.memory import give_back_large_blocks, keep_what_is_loaded
pages = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
has_mallopt = give_back_large_blocks() if sys.argv[1] == "give" else None
blocks = [bytearray(30_000_000) for _ in range(3)]
del blocks
before = pages()
kept = []
for size in (9_000_000, 2_000_000, 12_000_000):
    block, small = bytearray(b"x" * size), bytearray(b"x" * 500_000)
    kept.append(small)
    del block
held = pages() - before
keep_what_is_loaded()
print(json.dumps([has_mallopt, held, gc.get_freeze_count()]))
"""


def held_by(what: str) -> list[int]:
    printed = subprocess.run([sys.executable, "-c", SCRIPT, what], capture_output=True, text=True, check=True).stdout
    return list(json.loads(printed))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="it is a habit of glibc")
def test_large_blocks_go_back_although_small_ones_stay() -> None:
    has_mallopt, held, frozen = held_by("give")
    assert has_mallopt
    assert held < 6_000_000, "1.5 MB of it is in use"
    assert held_by("keep")[1] > held + 5_000_000, "without it they are kept"
    assert frozen > 1000
