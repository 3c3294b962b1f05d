# SPDX-License-Identifier: Apache-2.0
"""Switches that have to be there before a library starts: in this process, and in those that it starts."""

import json
import os
import subprocess
import sys

from common.environment import FORCED, MEMORY

CHILD = "import common, os, subprocess, sys; subprocess.run([sys.executable, '-c', 'import json, os; print(json.dumps(dict(os.environ)))'])"


def of_a_child(**changes: str | None) -> dict[str, str]:
    """The environment of a process that a process of ours starts."""
    environment = {name: value for name, value in {**os.environ, **changes}.items() if value is not None}
    printed = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, text=True, env=environment, check=True).stdout
    return dict(json.loads(printed))


def test_nothing_calls_home_whatever_the_user_has_set() -> None:
    found = of_a_child(**dict.fromkeys(FORCED, "1"))
    assert FORCED.items() <= found.items()


def test_tensors_lie_in_large_pages_unless_the_user_says_otherwise() -> None:
    assert MEMORY.items() <= of_a_child(**dict.fromkeys(MEMORY)).items()
    own = dict.fromkeys(MEMORY, "glibc.malloc.hugetlb=0")
    assert own.items() <= of_a_child(**own).items()
