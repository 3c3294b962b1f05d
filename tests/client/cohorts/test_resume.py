# SPDX-License-Identifier: Apache-2.0
"""A build that was stopped goes on: after kill -9, after Ctrl-C, after a power cut; and one bad file costs one file."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.cohorts import decode_pool
from client.cohorts.build import build
from client.cohorts.decode_pool import ingest_all
from client.cohorts.ingest import PixelSettings
from client.cohorts.sources import SourceFile, find_files
from client.cohorts.tables import Listed
from common.errors import RunInterrupted, StorageError, WardroundError
from tests.client.cohorts.exports import SECRET, image, options, write_png, write_table

FILES = 12
KILLED_AFTER = 5
CHILD = """
import os, signal, sys
from pathlib import Path
from client.cohorts import decode_pool
from client.cohorts.build import build
from tests.client.cohorts.exports import SECRET, options
def progress(done, total):
    if done == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
build(options(Path(sys.argv[1]), Path(sys.argv[2])), SECRET, progress)
"""


@pytest.fixture
def export(tmp_path: Path) -> Path:
    for seed in range(FILES):
        write_png(tmp_path / "e" / f"P{seed // 2}" / f"{seed:02}.png", image(seed))
    return tmp_path / "e"


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_after_kill_9_nothing_is_decoded_twice_and_the_cohort_is_the_same(tmp_path: Path, export: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(export), str(tmp_path / "out"), str(KILLED_AFTER)]
    killed = subprocess.run(command, cwd=Path(__file__).resolve().parents[3])
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "out").exists() and (tmp_path / "out.part").is_dir(), "complete, or not there"
    report = build(options(export, tmp_path / "out"), SECRET)
    assert (report.kept, report.decoded) == (KILLED_AFTER, FILES - KILLED_AFTER)
    build(options(export, tmp_path / "whole"), SECRET)
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert not (tmp_path / "out.part").exists()


def stop_after(number: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == number:
            raise KeyboardInterrupt

    return progress


def test_ctrl_c_says_how_far_it_came_and_a_changed_file_is_read_again(tmp_path: Path, export: Path) -> None:
    with pytest.raises(RunInterrupted, match="5 of 12 files"):
        build(options(export, tmp_path / "out"), SECRET, stop_after(5))
    write_png(export / "P0" / "01.png", image(99))
    (export / "P1" / "03.png").unlink()
    report = build(options(export, tmp_path / "out"), SECRET)
    assert (report.kept, report.decoded) == (3, FILES - 4)
    images = np.load(tmp_path / "out" / "images.npy")
    build(options(export, tmp_path / "whole"), SECRET)
    np.testing.assert_array_equal(images, np.load(tmp_path / "whole" / "images.npy"))


def test_other_pixels_are_decoded_anew_but_other_labels_are_not(tmp_path: Path, export: Path) -> None:
    with pytest.raises(RunInterrupted):
        build(options(export, tmp_path / "out"), SECRET, stop_after(FILES))
    table = write_table(tmp_path / "t.csv", ("pid", "ill"), [(f"P{number}", number % 2) for number in range(FILES)])
    with pytest.raises(RunInterrupted):
        build(options(export, tmp_path / "other", table, Listed("pid", None, ("ill",))), SECRET, stop_after(FILES))
    (tmp_path / "other.part").rename(tmp_path / "third.part")
    assert build(options(export, tmp_path / "third", table, Listed("pid", None, ("ill",))), SECRET).decoded == 0
    assert build(options(export, tmp_path / "out", pixels={"size_pixels": 20}), SECRET).decoded == FILES


def test_what_a_crash_cut_in_half_is_thrown_away(tmp_path: Path, export: Path) -> None:
    with pytest.raises(RunInterrupted):
        build(options(export, tmp_path / "out"), SECRET, stop_after(FILES))
    journal, pixels = tmp_path / "out.part" / "journal.jsonl", tmp_path / "out.part" / "pixels.bin"
    journal.write_bytes(journal.read_bytes()[:-20])
    pixels.write_bytes(pixels.read_bytes() + b"half an image")
    report = build(options(export, tmp_path / "out"), SECRET)
    assert (report.kept, report.decoded) == (FILES - 1, 1)
    build(options(export, tmp_path / "whole"), SECRET)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_pixels_that_a_power_cut_lost_are_noticed(tmp_path: Path, export: Path) -> None:
    with pytest.raises(RunInterrupted):
        build(options(export, tmp_path / "out"), SECRET, stop_after(FILES))
    pixels = bytearray((tmp_path / "out.part" / "pixels.bin").read_bytes())
    pixels[300:340] = bytes(40)
    (tmp_path / "out.part" / "pixels.bin").write_bytes(pixels)
    with pytest.raises(StorageError, match=r"pixels were lost.*delete this folder"):
        build(options(export, tmp_path / "out"), SECRET)


def test_two_builds_of_one_cohort_do_not_mix(tmp_path: Path, export: Path) -> None:
    def second(done: int, total: int) -> None:
        with pytest.raises(StorageError, match="another build is at work"):
            build(options(export, tmp_path / "out"), SECRET)

    build(options(export, tmp_path / "out"), SECRET, second)


class Deadly(str):
    """A name that ends the process which unpickles it, as a codec that crashes does."""

    def __reduce__(self) -> tuple[object, tuple[int]]:
        return os._exit, (7,)


def test_a_file_at_which_the_decoder_dies_is_refused_and_the_others_go_on(export: Path) -> None:
    files = find_files(export)
    files[4] = SourceFile(Deadly(files[4].name), files[4].path)
    outcomes = list(ingest_all(files, PixelSettings(16), 2))
    assert [source.name for source, _ in outcomes] == [source.name for source in files]
    assert [found.refused is None for _, found in outcomes] == [number != 4 for number in range(FILES)]
    assert outcomes[4][1].refused is not None and "decoder died" in str(outcomes[4][1].refused.problem)
    assert [found.died for _, found in outcomes] == [number == 4 for number in range(FILES)], "another start tries it again"


def test_when_no_worker_lives_no_file_is_blamed(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_pool, "start_worker", os.abort)
    with pytest.raises(WardroundError, match="no process for decoding can be started"):
        list(ingest_all(find_files(export), PixelSettings(16), 1))
