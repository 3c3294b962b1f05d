# SPDX-License-Identifier: Apache-2.0
"""A disk that is really full: a small file system of its own (as root), and a limit of a file's size (anybody)."""

import errno
import os
import resource
import signal
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from client.site import log_path
from client.site_log import full_disk, keep_room, log_failure, room_path
from common.errors import StorageError
from common.protocol import Instruction, Refusal, RefusalCode, Update
from tests.client.test_app import Hospital
from tests.support.studies import PRIVATE, small

DISK_MEGABYTES = 3


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few megabytes at tmp_path/north, where the site `north` will lie."""
    place = tmp_path / "north"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], capture_output=True, check=False).returncode:
        pytest.skip("only root may mount a small disk")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path) -> Path:
    """A file that takes all space that is left."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, pytest.raises(OSError) as caught:
        while True:
            file.write(bytes(4096))
    assert caught.value.errno == errno.ENOSPC
    return filler


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    before, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)


def test_a_full_disk_is_named_in_the_sites_log_and_nowhere_else(
    disk: Path, make_site: Callable[..., Path], instruct: Callable[..., Instruction]
) -> None:
    study = small(PRIVATE)
    hospital = Hospital(make_site(study))
    assert isinstance(hospital.ask(instruct(study, 1)), Update)
    filler = fill(disk)
    refusal = hospital.ask(instruct(study, 2))
    assert isinstance(refusal, Refusal)
    assert (refusal.code in (RefusalCode.TRAINING_FAILED, RefusalCode.NOT_READY), refusal.site) == (True, "")
    log = log_path(disk).read_text(encoding="utf-8")
    assert f"{refusal.code.value}: DISK FULL at {disk} (" in log
    assert "0.0 MB are free there" in log and "Free some space" in log
    assert "Traceback" in log, "the cause follows in full"
    filler.unlink()
    assert isinstance(hospital.ask(instruct(study, 3)), Update), "with space again nothing else is to be done"
    assert room_path(disk).stat().st_size > 0, "and room is kept again"


def test_a_limit_of_a_files_size_is_told_apart_in_training(make_site: Callable[..., Path], instruct: Callable[..., Instruction]) -> None:
    study = small(PRIVATE)
    hospital = Hospital(make_site(study))
    instruction = instruct(study)
    model_bytes = sum(array.nbytes for array in instruction.model.values())
    with largest_file(model_bytes // 2):
        assert hospital.ask(instruction) == Refusal(RefusalCode.TRAINING_FAILED, "")
    assert "TRAINING_FAILED: DISK FULL" in log_path(hospital.folder).read_text(encoding="utf-8")


def test_only_a_full_disk_is_called_so(tmp_path: Path) -> None:
    log_failure(tmp_path, RefusalCode.TRAINING_FAILED, StorageError("damaged"))
    log_failure(tmp_path, RefusalCode.TRAINING_FAILED, PermissionError(errno.EACCES, "no"))
    assert "DISK FULL" not in log_path(tmp_path).read_text(encoding="utf-8")


def test_the_cause_is_found_behind_our_own_errors() -> None:
    def wrapped(cause: Exception) -> Exception:
        try:
            try:
                raise cause
            except type(cause) as error:
                raise StorageError("cannot write") from error
        except StorageError as error:
            return error

    assert full_disk(wrapped(OSError(errno.ENOSPC, "full"))) == os.strerror(errno.ENOSPC)
    assert full_disk(wrapped(OSError(errno.EDQUOT, "quota"))) == os.strerror(errno.EDQUOT)
    assert full_disk(wrapped(OSError(errno.EIO, "broken"))) is None
    database = sqlite3.connect(":memory:")
    database.execute("PRAGMA max_page_count = 2")
    database.execute("CREATE TABLE t (x)")
    with pytest.raises(sqlite3.OperationalError) as caught:
        database.execute("INSERT INTO t VALUES (zeroblob(100000))")
    database.close()
    assert full_disk(wrapped(caught.value)) == "database or disk is full"


def test_a_log_that_cannot_be_written_goes_to_the_error_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log_path(tmp_path).mkdir()
    keep_room(tmp_path)
    log_failure(tmp_path, RefusalCode.TRAINING_FAILED, OSError(errno.ENOSPC, "full"))
    assert f"DISK FULL at {tmp_path}" in capsys.readouterr().err
