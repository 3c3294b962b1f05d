# SPDX-License-Identifier: Apache-2.0
"""The instruments of the scenarios do what they say: a clock that is wrong, a power cut, an update that is bent."""

import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import numpy as np
import pytest

from common.errors import ProtocolError
from common.protocol import Update, read_reply
from tests.support.power_cut import PowerCut
from tests.support.rogue_daemon import BENDS, REPLAY, RogueWorker
from tests.support.skewed_clock import SkewedClock

HOUR = 3600.0
RUN = "a" * 32
SHAPES = {"b": (), "w": (2, 3)}
WRITES = """\
import os, sys
def write(name, text, synced, way="wb"):
    with open(name, way) as file:
        file.write(text)
        file.flush()
        if synced:
            os.fsync(file.fileno())
def names():
    handle = os.open(sys.argv[1], os.O_RDONLY)
    os.fsync(handle)
os.chdir(sys.argv[1])
home = sys.argv[1] + "/"
write(home + "old", b"-unsynced", False, "ab")
write(home + "synced", b"whole", True)
write(home + "half", b"first", True)
names()
write(home + "half", b"-second", False, "ab")
write(home + "nameless", b"content", True)
write(home + "new", b"new", True)
os.replace(home + "new", home + "renamed")
os.unlink(home + "deleted")
"""


def python(code: str, environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, env={**os.environ, **environment}, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("seconds", [HOUR, -HOUR])
def test_a_clock_is_wrong_for_its_own_processes_only(tmp_path: Path, seconds: float) -> None:
    clock = SkewedClock(tmp_path / "clock")
    code = "import time, datetime; m = time.monotonic(); print(time.time(), datetime.datetime.now().timestamp(), m)"
    assert abs(float(python(code, clock.environment).split()[0]) - time.time()) < HOUR / 2
    clock.set(seconds)
    shown = [float(word) for word in python(code, clock.environment).split()]
    assert abs(shown[0] - time.time() - seconds) < HOUR / 2
    assert abs(shown[1] - shown[0]) < 1
    assert abs(shown[2] - time.monotonic()) < HOUR / 2


def test_a_power_cut_takes_what_was_not_synced(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    for name in ("old", "deleted", "renamed"):
        (home / name).write_bytes(name.encode())
    power = PowerCut(home, tmp_path / "power")
    python(WRITES, power.environment, str(home))
    some = {frozenset((path.name, text) for path, text in power.after(Random(seed)).items()) for seed in range(20)}
    assert len(some) > 1, "what may last, lasts by chance"
    power.strike()
    left = {path.name: path.read_bytes() for path in home.iterdir()}
    assert left == {"old": b"old", "deleted": b"deleted", "renamed": b"renamed", "synced": b"whole", "half": b"first"}
    assert power.lost == ["deleted", "half", "nameless", "old", "renamed"]


def test_each_bent_update_is_one_that_does_not_fit(tmp_path: Path) -> None:
    orders = tmp_path / "orders"
    worker = RogueWorker(orders)

    def answered(number: int, order: str) -> dict[str, np.ndarray]:
        orders.write_text(order)
        delta = {name: np.full(shape, 0.5, np.float32) for name, shape in SHAPES.items()}
        records = worker.bent(Update(RUN, number, "beta", delta).to_records())
        assert records is not None
        found = read_reply(records, run_id=RUN, round_number=number, shapes=SHAPES, counts_shape=None)
        assert isinstance(found, Update)
        return dict(found.delta)

    assert answered(1, "")["w"].tolist() == [[0.5] * 3] * 2
    for number, order in enumerate([*BENDS, REPLAY], start=2):
        if order == "1e30":  # fits the protocol; its norm does not fit the study
            assert any((value == np.float32(1e30)).all() for value in answered(number, order).values())
            continue
        with pytest.raises(ProtocolError):
            answered(number, order)
